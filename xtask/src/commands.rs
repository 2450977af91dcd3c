//! The commands of the tools, and what each does, as both programs say it.

/// A command by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    pub name: &'static str,
    pub about: &'static str,
}

pub const DEMO: Tool = Tool {
    name: "demo",
    about: "Shows Highwater at work: 34,006 cities in a NATS bucket, three indexes, some questions",
};
pub const COMPOSE_TEST: Tool = Tool {
    name: "compose-test",
    about: "Brings the stacks of compose/ up for real, disturbs them, and compares what they answer with the documents",
};
pub const COMPOSE_IMAGES: Tool =
    Tool { name: "compose-images", about: "Builds images for the stacks of compose/ without pulling any" };
pub const BENCH: Tool =
    Tool { name: "bench", about: "Measures Highwater beside the limits of this machine, in release builds" };
pub const SCHEMAS: Tool =
    Tool { name: "schemas", about: "Writes the JSON Schemas and docs/errors.md from the types; --check only compares" };

pub const FIXTURES: Tool =
    Tool { name: "fixtures", about: "Packs what this version leaves on disk, for the upgrade test of later versions" };

/// All of them, in the order in which they are listed.
pub const TOOLS: [Tool; 6] = [DEMO, COMPOSE_TEST, COMPOSE_IMAGES, BENCH, SCHEMAS, FIXTURES];
