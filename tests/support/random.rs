//! Numbers that look random and are the same everywhere. For tests.

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }

    /// `n` bytes made of words of which the bits `keep` are random and the bits `set` are set.
    pub fn words(&mut self, n: usize, keep: u64, set: u64) -> Vec<u8> {
        let mut all = Vec::with_capacity(n + 8);
        while all.len() < n {
            all.extend_from_slice(&((self.next() & keep) | set).to_le_bytes());
        }
        all.truncate(n);
        all
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        self.words(n, u64::MAX, 0)
    }

    /// Uniform in -1..1.
    pub fn signed(&mut self) -> f64 {
        let top = u32::try_from(self.next() >> 32).expect("32 bits");
        f64::from(top) / 2_147_483_648.0 - 1.0
    }

    /// About -2 to 2, with a bell shape.
    pub fn bell(&mut self) -> f32 {
        let mut uniform = || f32::from(u16::from(self.byte())) / 256.0 - 0.5;
        uniform() + uniform() + uniform() + uniform()
    }
}

pub fn size(n: u64) -> usize {
    usize::try_from(n).expect("test sizes are small")
}
