//! Randomness from one seed.

/// Names another seed than [`FIXED`].
pub const SEED: &str = "HIGHWATER_SEED";
/// What is drawn from when nothing is said, so that a run is the same everywhere.
pub const FIXED: u64 = 1;

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From `HIGHWATER_SEED`, else from [`FIXED`]; prints it.
    ///
    /// # Panics
    /// When the variable is no number.
    pub fn seeded(test: &str) -> Self {
        let named = std::env::var(SEED).ok();
        let seed =
            named.map_or(FIXED, |text| text.parse().unwrap_or_else(|_| panic!("{SEED} is not a number: {text}")));
        println!("{test}: {SEED}={seed}");
        Self(seed)
    }

    /// A generator of its own for another task.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    #[expect(clippy::should_implement_trait, reason = "an endless generator is no iterator to its users")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `below` - 1.
    pub fn below(&mut self, below: u64) -> u64 {
        self.next() % below.max(1)
    }

    /// True in `percent` of the cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}
