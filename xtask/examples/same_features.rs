//! Holds nothing. Cargo takes the features that tests ask for into account only where a test or an example is built, so this one
//! is built beside binaries that the tests shall not compile again (`xtask::workspace::build`).

fn main() {}
