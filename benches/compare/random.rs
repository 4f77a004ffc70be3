//! A small seeded generator (xorshift64*), so that two ends of a connection know the same bytes.

/// Pseudo-random numbers from a seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give similar numbers (splitmix64's finish).
        let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Random((mixed ^ (mixed >> 31)) | 1)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number from 0 up to and without `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high bits are the good ones.
        (self.next() >> 8) % bound
    }

    /// True `percent` times of a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A size up to `most`, small ones as likely as large ones: every power of two is.
    pub fn size(&mut self, most: u64) -> u64 {
        let bits = u64::from(64 - most.leading_zeros());
        let bits = self.below(bits + 1);
        self.below((1 << bits).min(most) + 1)
    }
}

/// An endless stream of bytes that both ends of a connection can make.
#[derive(Debug)]
pub struct Pattern {
    random: Random,
    word: [u8; 8],
    used: usize,
    expected: Vec<u8>,
}

impl Pattern {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Pattern {
            random: Random::new(seed),
            word: [0; 8],
            used: 8,
            expected: Vec::new(),
        }
    }

    /// Writes the next bytes.
    pub fn fill(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            if self.used == 8 {
                let whole = bytes.len() / 8 * 8;
                let (words, rest) = bytes.split_at_mut(whole);
                for word in words.chunks_exact_mut(8) {
                    word.copy_from_slice(&self.random.next().to_le_bytes());
                }
                bytes = rest;
                if bytes.is_empty() {
                    return;
                }
                self.word = self.random.next().to_le_bytes();
                self.used = 0;
            }
            let count = bytes.len().min(8 - self.used);
            bytes[..count].copy_from_slice(&self.word[self.used..][..count]);
            self.used += count;
            bytes = &mut bytes[count..];
        }
    }

    /// Whether these are the next bytes.
    pub fn matches(&mut self, bytes: &[u8]) -> bool {
        let mut expected = std::mem::take(&mut self.expected);
        expected.resize(bytes.len(), 0);
        self.fill(&mut expected);
        let same = expected == bytes;
        self.expected = expected;
        same
    }
}
