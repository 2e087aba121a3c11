//! Chance that can be repeated: every choice of a run comes from its seed.

/// The finaliser of splitmix64 (Steele, Lea, Flood 2014).
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A sequence of numbers that look random.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The sequence for these numbers: the same for the same ones.
    #[must_use]
    pub fn new(of: &[u64]) -> Dice {
        Dice(of.iter().fold(0, |seed, n| mix(seed ^ mix(*n))))
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// A number below `n`; 0 if `n` is.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.roll() % n }
    }

    /// Whether something that happens once in `n` times does.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let at = usize::try_from(self.below(from.len() as u64)).unwrap_or(0);
        from.get(at)
    }

    /// A length: mostly small, now and then large, never above `most` and never 0.
    pub fn length(&mut self, most: u64) -> u64 {
        let scale = match self.below(1000) {
            0..500 => 512,
            500..800 => 8 << 10,
            800..950 => 64 << 10,
            950..995 => 512 << 10,
            _ => 8 << 20,
        };
        1 + self.below(scale.min(most.max(1)))
    }
}

/// Bytes that tell their place: the same for the same seed, at every offset others.
#[must_use]
pub fn fill(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    for (i, word) in (0..).zip(bytes.chunks_mut(8)) {
        word.copy_from_slice(&mix(seed ^ i).to_le_bytes()[..word.len()]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_choices() {
        let draw = |seed| {
            let mut dice = Dice::new(&[seed, 3]);
            [dice.below(100), dice.length(1 << 20), dice.roll()]
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_eq!(fill(7, 11).len(), 11);
        assert_eq!(fill(7, 11)[..8], fill(7, 8)[..]);
    }
}
