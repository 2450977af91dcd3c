//! The images of the stacks: from static binaries and nothing else, or from `compose/Dockerfile`.

use super::{NotRun, engine::Engine};
use crate::{
    dist::{build, target::Target},
    nats_server, shell,
    term::step,
    workspace::{root, target_dir},
};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

const PACKAGES: [&str; 2] = ["highwater", "highwater-compose-writer"];

/// Images by what they hold; they are removed when this is dropped.
pub struct Images<'a> {
    engine: &'a Engine,
    /// The variable of the Compose files, and the image.
    built: Vec<(&'static str, String)>,
    /// Made of static binaries: there is no shell and no wget in them.
    pub scratch: bool,
    kept: bool,
}

impl<'a> Images<'a> {
    /// Builds static binaries, and images of nothing else; pulls nothing.
    pub async fn from_scratch(engine: &'a Engine, tag: &str) -> Result<Self> {
        let since = Instant::now();
        let target = target_dir()?;
        let binaries = static_binaries().await?;
        step("static binaries", since.elapsed());

        let since = Instant::now();
        let server = nats_server::find(&target)?;
        let context = tempfile::tempdir_in(&target).context("no directory for the images' files")?;
        for package in PACKAGES {
            copy(&binaries.join(package), &context.path().join(package))?;
        }
        copy(&server.path, &context.path().join("nats-server"))?;
        fs::create_dir(context.path().join("data")).context("cannot write the images' files")?;
        let mut images = Self { engine, built: Vec::new(), scratch: true, kept: false };
        for (variable, name) in [("HIGHWATER_IMAGE", "highwater"), ("WRITER_IMAGE", "writer"), ("NATS_IMAGE", "nats")] {
            images.build(variable, name, tag, "scratch.Dockerfile", context.path()).await?;
        }
        step(&format!("images from them and nats-server {} (from {})", server.version, server.origin), since.elapsed());
        Ok(images)
    }

    /// Builds with the Dockerfile; the nats image is the official one.
    pub async fn from_dockerfile(engine: &'a Engine, tag: &str) -> Result<Self> {
        let since = Instant::now();
        let mut images = Self { engine, built: Vec::new(), scratch: false, kept: false };
        for (variable, name) in [("HIGHWATER_IMAGE", "highwater"), ("WRITER_IMAGE", "writer")] {
            images.build(variable, name, tag, "Dockerfile", &root()).await?;
        }
        step("images from compose/Dockerfile", since.elapsed());
        Ok(images)
    }

    async fn build(
        &mut self,
        variable: &'static str,
        target: &str,
        tag: &str,
        file: &str,
        context: &Path,
    ) -> Result<()> {
        let name = if target == "highwater" { format!("highwater:{tag}") } else { format!("highwater-{target}:{tag}") };
        let file = root().join("compose").join(file);
        let mut command = self.engine.docker(["build", "--quiet", "--target", target, "--tag", &name, "--file"]);
        command.arg(file).arg(context);
        // Before it is there: a build may be cut short after its last step.
        self.built.push((variable, name));
        shell::run(command).await?;
        Ok(())
    }

    /// The settings of the Compose files.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.built.iter().map(|(variable, image)| (*variable, image.as_str()))
    }

    /// Leaves them when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Images<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for (_, image) in &self.built {
            // One that was not built is none to remove.
            let _ = shell::run_blocking(self.engine.docker(["rmi", "--force", image]));
        }
    }
}

/// Those that are shipped; glibc's resolver works in them, also in an empty image.
async fn static_binaries() -> Result<PathBuf> {
    let target = Target::choose(None).and_then(|target| target.check().map(|()| target));
    let target = target.map_err(|error| {
        NotRun(format!(
            "images from scratch need static binaries for Linux, and there are none here ({error:#}); try --official"
        ))
    })?;
    let (command, directory) = build::static_binaries(&PACKAGES, &target)?;
    shell::show(command).await?;
    Ok(directory)
}

/// Without a copy of the bytes where the file system can.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(|_| ()))
        .with_context(|| format!("cannot copy {}", from.display()))
}
