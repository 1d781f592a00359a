//! Level tables: what turns a code into a small integer (spec/codec.md, "Levels").

use crate::error::{Error, Result};
use crate::format::{LevelsEntry, MAX_PLANES, MIN_PLANES, PLANE_COUNTS, plane_index};
use crate::rule::Rule;

include!("default_levels.rs");

/// The tables for one native plane count: one for each number of planes read, from native to 3.
#[derive(Debug, Clone, Copy)]
pub struct LevelSet<'a> {
    native: u8,
    levels: &'a [i8],
}

impl<'a> LevelSet<'a> {
    /// The spec's default tables for `native` planes (UC-LVL-4).
    ///
    /// # Panics
    /// When `native` is not 3 to 8.
    pub fn default_for(native: u8) -> LevelSet<'static> {
        assert!((MIN_PLANES..=MAX_PLANES).contains(&native), "3 to 8 planes, not {native}");
        LevelSet { native, levels: DEFAULT_LEVELS[plane_index(native)] }
    }

    /// Planes of the rows it is for.
    pub fn native(&self) -> u8 {
        self.native
    }

    /// The tables for native, native - 1, ..., 3 planes read, one behind the other.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn all(&self) -> &'a [i8] {
        self.levels
    }

    /// The 2^read levels for rows of `native` planes of which `read` are read (UC-LVL-1).
    ///
    /// # Panics
    /// When `read` is not in 3..=native.
    pub fn table(&self, read: u8) -> &'a [i8] {
        assert!((3..=self.native).contains(&read), "read 3 to {} planes, not {read}", self.native);
        // Tables of native, native - 1, ... planes come first: 2^native + ... + 2^(read + 1)
        // levels.
        let start = (2usize << self.native) - (2usize << read);
        &self.levels[start..start + (1 << read)]
    }
}

/// The level tables that one tensor uses, by native plane count.
#[derive(Debug, Clone, Copy)]
pub struct Levels<'a> {
    sets: [LevelSet<'a>; PLANE_COUNTS],
}

impl Default for Levels<'_> {
    fn default() -> Self {
        Self { sets: [3, 4, 5, 6, 7, 8].map(LevelSet::default_for) }
    }
}

impl<'a> Levels<'a> {
    /// Resolves the table ids of a tensor: 0 is the default, n the n-th levels record of the file.
    ///
    /// # Errors
    /// `Malformed(UC-LVL-3)` for an id without a record or a record for another native count.
    pub fn resolve(ids: &[u16; PLANE_COUNTS], records: &'a [LevelsEntry]) -> Result<Self> {
        let mut levels = Self::default();
        for ((native, id), set) in (MIN_PLANES..).zip(ids).zip(&mut levels.sets) {
            if *id == 0 {
                continue;
            }
            let record = records
                .get(usize::from(*id) - 1)
                .filter(|r| r.native == native && r.levels.len() == (2 << native) - 8);
            let Some(record) = record else {
                return Err(Error::malformed(
                    Rule::LVL_3,
                    format!("level table {id} for {native} planes doesn't exist"),
                ));
            };
            *set = LevelSet { native, levels: &record.levels };
        }
        Ok(levels)
    }

    /// The tables for rows of `native` planes.
    ///
    /// # Panics
    /// When `native` is not 3 to 8.
    pub fn set(&self, native: u8) -> LevelSet<'a> {
        self.sets[plane_index(native)]
    }
}

/// [`Levels`] that own their tables.
#[derive(Debug, Clone)]
pub(crate) struct OwnedLevels([Vec<i8>; PLANE_COUNTS]);

impl OwnedLevels {
    /// Takes the tables for `3 + i` native planes.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn set(&mut self, i: usize, tables: Vec<i8>) {
        self.0[i] = tables;
    }

    pub(crate) fn borrow(&self) -> Levels<'_> {
        let mut levels = Levels::default();
        for (set, owned) in levels.sets.iter_mut().zip(&self.0) {
            set.levels = owned;
        }
        levels
    }
}

impl From<Levels<'_>> for OwnedLevels {
    fn from(levels: Levels<'_>) -> Self {
        Self(levels.sets.map(|set| set.levels.to_vec()))
    }
}

#[cfg(feature = "checkpoints")]
/// The tables of rows of one native count: all of them, one behind the other.
pub(crate) type TableSet = (u8, Vec<i8>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_tables_increase_strictly() {
        for native in 3..=8 {
            let set = LevelSet::default_for(native);
            assert_eq!(set.levels.len(), (2 << native) - 8);
            for read in 3..=native {
                assert!(set.table(read).windows(2).all(|w| w[0] < w[1]), "{native} read as {read}");
            }
        }
    }
}
