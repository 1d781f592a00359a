//! The numbered rules of the spec, as errors and vectors cite them.

use std::fmt;

/// One numbered requirement of the spec, such as `UC-IDX-3`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule(&'static str);

macro_rules! rules {
    ($($name:ident = $id:literal: $doc:literal;)*) => {
        impl Rule {
            $(#[doc = $doc] pub const $name: Rule = Rule($id);)*

            /// Every rule, in the order of the spec.
            pub const ALL: &'static [Rule] = &[$(Rule::$name,)*];

            /// What the rule is about, in a few words.
            pub fn title(self) -> &'static str {
                match self.0 { $($id => $doc,)* _ => "" }
            }
        }
    };
}

rules! {
    HDR_1 = "UC-HDR-1": "The magic bytes.";
    HDR_2 = "UC-HDR-2": "The format version.";
    HDR_3 = "UC-HDR-3": "The checksum of the preamble.";
    HDR_4 = "UC-HDR-4": "The length of the preamble and its reserved bytes.";
    HDR_5 = "UC-HDR-5": "Required and optional feature bits.";
    HDR_6 = "UC-HDR-6": "The length of the file.";
    HDR_7 = "UC-HDR-7": "Where index, manifest and attachments lie.";
    HDR_8 = "UC-HDR-8": "Shard number and shard count.";
    IDX_1 = "UC-IDX-1": "The checksum of the index.";
    IDX_2 = "UC-IDX-2": "The frame of an index record.";
    IDX_3 = "UC-IDX-3": "The number of records and the end of the index.";
    IDX_4 = "UC-IDX-4": "The order of records.";
    IDX_5 = "UC-IDX-5": "Unknown records.";
    NAM_1 = "UC-NAM-1": "Names of tensors and tables.";
    NAM_2 = "UC-NAM-2": "Paths of carried files.";
    NAM_3 = "UC-NAM-3": "No carried path is a folder of another.";
    DTY_1 = "UC-DTY-1": "Codes of element types.";
    TEN_1 = "UC-TEN-1": "The body of a tensor record.";
    TEN_2 = "UC-TEN-2": "The size of a tensor.";
    TEN_3 = "UC-TEN-3": "Fields that an encoding doesn't use are zero.";
    TEN_4 = "UC-TEN-4": "What an alias may point to.";
    TEN_5 = "UC-TEN-5": "The decoded digest of a tensor.";
    FIL_1 = "UC-FIL-1": "The body of a file record and its digest.";
    PRT_1 = "UC-PRT-1": "The header of a part.";
    PRT_2 = "UC-PRT-2": "Chunks of a part.";
    PRT_3 = "UC-PRT-3": "Parts tile the data section.";
    PRT_4 = "UC-PRT-4": "Which parts a record has, and their order.";
    PRT_5 = "UC-PRT-5": "The length of each part.";
    PRT_6 = "UC-PRT-6": "The checksum of a chunk.";
    PRT_7 = "UC-PRT-7": "zstd chunks.";
    PLN_1 = "UC-PLN-1": "Which element types may be stored as planes.";
    PLN_2 = "UC-PLN-2": "Rows and columns of a tensor.";
    PLN_3 = "UC-PLN-3": "Planes per row.";
    PLN_4 = "UC-PLN-4": "Groups.";
    PLN_5 = "UC-PLN-5": "The order of rows.";
    PLN_6 = "UC-PLN-6": "The order of bits inside a plane.";
    PLN_7 = "UC-PLN-7": "The layout of the steps part.";
    LVL_1 = "UC-LVL-1": "The body of a level table record.";
    LVL_2 = "UC-LVL-2": "Levels increase strictly.";
    LVL_3 = "UC-LVL-3": "Which table a tensor uses.";
    LVL_4 = "UC-LVL-4": "The default tables.";
    VAL_1 = "UC-VAL-1": "The range of row scales.";
    VAL_2 = "UC-VAL-2": "The sixteen steps.";
    VAL_3 = "UC-VAL-3": "The value of a weight.";
    VAL_4 = "UC-VAL-4": "Rounding to the target type.";
    VAL_5 = "UC-VAL-5": "Rungs: reading fewer planes.";
    EXA_1 = "UC-EXA-1": "The record of an exact model.";
    EXA_2 = "UC-EXA-2": "Contexts of an exact model.";
    EXA_3 = "UC-EXA-3": "Tables of an exact model.";
    EXA_4 = "UC-EXA-4": "Blocks of a residual.";
    EXA_5 = "UC-EXA-5": "Where a weight is expected.";
    EXA_6 = "UC-EXA-6": "Decoding a weight.";
    EXA_7 = "UC-EXA-7": "Exceptions.";
    EXA_8 = "UC-EXA-8": "Lower bits of wide weights.";
    EXA_9 = "UC-EXA-9": "How a block ends.";
    EXA_10 = "UC-EXA-10": "Coded tensors without planes.";
    EXA_11 = "UC-EXA-11": "The exact bytes of a tensor.";
    EXA_12 = "UC-EXA-12": "Heads of source files.";
    OVL_1 = "UC-OVL-1": "The record of an overlay.";
    OVL_2 = "UC-OVL-2": "Blocks of an overlay and their factors.";
    OVL_3 = "UC-OVL-3": "Overlays of one file, and their base.";
    OVL_4 = "UC-OVL-4": "The tensor of a block.";
    OVL_5 = "UC-OVL-5": "Which scales and factors there may be.";
    OVL_6 = "UC-OVL-6": "The product of int8 factors.";
    OVL_7 = "UC-OVL-7": "The product of binary16 factors.";
    OVL_8 = "UC-OVL-8": "The sum of base and overlays.";
    OVL_9 = "UC-OVL-9": "Effective digests and roots.";
    OVL_10 = "UC-OVL-10": "Files of overlays.";
    ROOT_1 = "UC-ROOT-1": "The hash tree.";
    ROOT_2 = "UC-ROOT-2": "The decoded root.";
    ROOT_3 = "UC-ROOT-3": "The stored root.";
    SHD_1 = "UC-SHD-1": "What only the first shard holds.";
    SHD_2 = "UC-SHD-2": "Names of shards.";
    SHD_3 = "UC-SHD-3": "The form of the index file.";
    SHD_4 = "UC-SHD-4": "Each shard is the one that the index file lists.";
    SHD_5 = "UC-SHD-5": "Each record is in one shard, tensors in the one that the index file names.";
    SHD_6 = "UC-SHD-6": "Roots of a sharded pack.";
    SHD_7 = "UC-SHD-7": "A shard that is looked at by itself.";
    MAN_1 = "UC-MAN-1": "The manifest is canonical JSON with integers only.";
    MAN_2 = "UC-MAN-2": "The members of the manifest.";
    MAN_3 = "UC-MAN-3": "The manifest agrees with the index.";
    MAN_4 = "UC-MAN-4": "The checksum of the manifest.";
    MAN_5 = "UC-MAN-5": "Decoded roots of rungs.";
    ATT_1 = "UC-ATT-1": "The attachment section.";
    RCP_1 = "UC-RCP-1": "A receipt is canonical JSON.";
    RCP_2 = "UC-RCP-2": "The members of a receipt.";
    RCP_3 = "UC-RCP-3": "The headline of a receipt follows from its rows.";
    LIM_1 = "UC-LIM-1": "Ceilings of a reader.";
}

impl Rule {
    /// The rule's number as the spec prints it.
    pub const fn id(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
