//! Coding tables, and the state of the coders of one block.

/// Coders that take turns, weight by weight.
pub(crate) const LANES: usize = 32;
/// A state below this takes a word.
pub(crate) const LOW: u32 = 1 << 16;

/// Decoding tables, one behind the other, each with 2^precision entries: bits 20 to 31 a symbol's
/// frequency, bits 8 to 19 how far the entry is from the symbol's first, bits 0 to 7 the symbol.
#[derive(Debug, Clone)]
pub(crate) struct DecodeTables {
    pub(super) entries: Vec<u32>,
    pub(super) precision: u32,
}

impl DecodeTables {
    /// # Panics
    /// When entries don't fill whole tables.
    pub(crate) fn new(entries: Vec<u32>, precision: u32) -> Self {
        assert!(
            (1..=11).contains(&precision) && entries.len().is_multiple_of(1 << precision),
            "tables"
        );
        Self { entries, precision }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.entries[..])
    }
}

/// The state of the coders of one block.
#[derive(Debug)]
pub(crate) struct Lanes<'a> {
    pub states: [u32; LANES],
    /// Words that are left.
    pub words: &'a [[u8; 2]],
}

/// Encoding tables.
#[cfg(feature = "checkpoints")]
#[derive(Debug, Clone)]
pub(crate) struct EncodeTables {
    /// By table (times 256) and symbol: bits 0 to 15 the frequency, or 0 for a symbol that the
    /// table doesn't have, bits 16 up the first slot.
    pub(super) codes: Vec<u32>,
    /// By frequency: 2^32 over it, rounded down, and at most 2^32 - 1.
    pub(super) reciprocals: Vec<u32>,
    /// By table, the code of its most frequent symbol: what exceptions are coded as.
    pub(super) usual: Vec<u32>,
    pub(super) precision: u32,
}

#[cfg(feature = "checkpoints")]
impl EncodeTables {
    /// Of symbols with their frequencies, table by table.
    ///
    /// # Panics
    /// When a table's frequencies don't sum to 2^precision, or tables are none or more than 256.
    pub(crate) fn new<'a>(tables: impl Iterator<Item = &'a [(u8, u16)]>, precision: u32) -> Self {
        assert!((1..=11).contains(&precision), "precision");
        let (mut codes, mut usual) = (vec![], vec![]);
        for table in tables {
            let first = codes.len();
            codes.resize(first + 256, 0);
            let (mut start, mut most) = (0u32, (0, 0));
            for &(symbol, frequency) in table {
                let code = start << 16 | u32::from(frequency);
                codes[first + usize::from(symbol)] = code;
                most = most.max((frequency, code));
                start += u32::from(frequency);
            }
            assert_eq!(start, 1 << precision, "frequencies");
            usual.push(most.1);
        }
        assert!((1..=256).contains(&usual.len()), "tables");
        let reciprocal = |f: u64| u32::try_from((1 << 32) / f.max(1)).unwrap_or(u32::MAX);
        let reciprocals = (0..=1 << precision).map(reciprocal).collect();
        Self { codes, reciprocals, usual, precision }
    }
}

/// What encodes the weights of one block, the last first.
#[cfg(feature = "checkpoints")]
#[derive(Debug)]
pub(crate) struct LaneEncoder {
    pub(super) states: [u32; LANES],
    /// Words, of which those from `start` on are written; there is room for eight more before them
    /// than weights need.
    pub(super) words: Vec<[u8; 2]>,
    pub(super) start: usize,
    /// Place and upper bits of weights that aren't coded by their symbol, the last first.
    pub(super) exceptions: Vec<(u16, [u8; 2])>,
}

#[cfg(feature = "checkpoints")]
impl LaneEncoder {
    /// For at most `weights` weights; `words` is a buffer, whatever is in it.
    pub(crate) fn new(mut words: Vec<[u8; 2]>, weights: usize) -> Self {
        words.resize(weights + 8, [0; 2]);
        Self { states: [LOW; LANES], start: words.len(), words, exceptions: vec![] }
    }

    /// What the decoder begins with.
    pub(crate) fn end(self) -> EncodedLanes {
        let Self { states, words, start, mut exceptions } = self;
        exceptions.reverse();
        EncodedLanes { states, words, start, exceptions }
    }
}

/// The weights of a block as they are stored.
#[cfg(feature = "checkpoints")]
#[derive(Debug)]
pub(crate) struct EncodedLanes {
    pub states: [u32; LANES],
    /// The buffer, in which words begin at `start`.
    pub words: Vec<[u8; 2]>,
    pub start: usize,
    /// Places, in order, and upper bits.
    pub exceptions: Vec<(u16, [u8; 2])>,
}
