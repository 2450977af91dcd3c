//! Relative links in Markdown must lead somewhere.

use super::SourceFile;
use std::path::Path;

/// Checks one page.
pub fn check(file: &SourceFile, root: &Path, offences: &mut Vec<String>) {
    let page = root.join(&file.path);
    let directory = page.parent().unwrap_or(root);
    for (number, target) in links(&file.text) {
        if !directory.join(target).exists() {
            offences.push(format!("{}:{number}: the link to {target} leads nowhere", file.path));
        }
    }
}

/// Line number and path of every relative link, without its anchor; code blocks are passed over.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split([')', '#', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains(':') && !target.starts_with('<') {
                found.push((number + 1, target));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_relative_links_only() {
        let text = "[a](docs/a.md#top) [b](https://example.org)\n```\n[c](c.md)\n```\n[d](#here) [e](../e.md)\n";
        assert_eq!(links(text), [(1, "docs/a.md"), (5, "../e.md")]);
    }
}
