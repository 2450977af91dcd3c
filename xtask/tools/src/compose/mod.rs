//! `cargo xtask compose-test` and `compose-images`: the stacks of `compose/`, brought up for real.
//!
//! # Layout
//! - `engine`: a Docker engine that answers, else one of our own in a temporary directory
//! - `images`: built from static binaries where nothing can be pulled, or from `compose/Dockerfile`
//! - `stack`: one stack under a project name of its own; everything of it is gone when it is dropped
//! - `oracle`: indexes and what they must answer, computed from the documents
//! - `scenario`: what is done to a stack, and what must hold meanwhile

mod engine;
mod images;
mod oracle;
mod scenario;
mod stack;

use crate::term::{bold, step, time};
use anyhow::Result;
use clap::{Args, ValueEnum};
use engine::Engine;
use images::Images;
use stack::{Kind, Stack};
use std::{fmt, time::Instant};

/// What to test, and with which images.
#[derive(Args)]
pub struct Options {
    /// Only this stack
    #[arg(long, value_enum)]
    stack: Option<Kind>,
    /// Build with compose/Dockerfile and take the official nats image, which needs a registry
    #[arg(long)]
    official: bool,
}

/// Why nothing could be tested here. It is no failure.
#[derive(Debug)]
struct NotRun(String);

impl fmt::Display for NotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotRun {}

/// Tests the stacks. Where no Docker engine can be had, the last line says so.
pub async fn test(options: Options) -> Result<()> {
    let started = Instant::now();
    match test_stacks(&options).await {
        Ok(()) => println!("\ncompose-test: passed in {}", time(started.elapsed())),
        Err(error) => {
            let NotRun(why) = error.downcast()?;
            println!("compose-test: not run: {why}");
        }
    }
    Ok(())
}

async fn test_stacks(options: &Options) -> Result<()> {
    println!("{}", bold("== engine and images"));
    let since = Instant::now();
    let engine = Engine::find(true).await?;
    step(&engine.describe(), since.elapsed());
    let tag = format!("test-{}", std::process::id());
    let images = if options.official {
        Images::from_dockerfile(&engine, &tag).await?
    } else {
        Images::from_scratch(&engine, &tag).await?
    };
    for kind in Kind::value_variants() {
        if options.stack.is_none_or(|only| only == *kind) {
            println!("\n{}", bold(&format!("== {}", kind.title())));
            let mut stack = Stack::new(&engine, &images, *kind);
            let outcome = scenario::run(&mut stack).await;
            if outcome.is_err() {
                stack.print_logs().await;
            }
            outcome?;
            let since = Instant::now();
            stack.down_and_check()?;
            step("taken down: no container, network or volume is left", since.elapsed());
        }
    }
    Ok(())
}

/// Builds images from static binaries, to be kept, and says how the stacks take them.
pub async fn images() -> Result<()> {
    let engine = Engine::find(false).await?;
    let mut images = Images::from_scratch(&engine, "scratch").await?;
    images.keep();
    println!("\nTo start the stack with one server:\n");
    for (variable, image) in images.variables() {
        println!("  export {variable}={image}");
    }
    println!(
        "  docker-compose -p highwater -f compose/one-server.yml -f compose/one-server.scratch.yml up -d --no-build"
    );
    println!("\nWith three servers: cluster.yml and cluster.scratch.yml. Compose v2 is called `docker compose`.");
    Ok(())
}
