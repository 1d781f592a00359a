//! The numbered rules of the spec, as errors and vectors cite them.

use std::fmt;

/// One numbered requirement of the spec, such as `UC-IDX-3`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule(&'static str);

macro_rules! rules {
    ($($name:ident = $id:literal: $doc:literal;)*) => {
        impl Rule {
            $(#[doc = $doc] pub const $name: Rule = Rule($id);)*

            /// Every rule, by family and number.
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
    HDR_2 = "UC-HDR-2": "The major version.";
    HDR_3 = "UC-HDR-3": "The checksum of the preamble.";
    HDR_4 = "UC-HDR-4": "The length of the preamble.";
    HDR_5 = "UC-HDR-5": "Required feature bits that a reader doesn't know.";
    HDR_6 = "UC-HDR-6": "The length of the file.";
    HDR_7 = "UC-HDR-7": "The places of index, manifest and attachments.";
    HDR_8 = "UC-HDR-8": "Shard number and shard count of a shard.";
    HDR_9 = "UC-HDR-9": "Optional feature bits that a reader doesn't know.";
    HDR_10 = "UC-HDR-10": "A writer sets a feature bit exactly where what it names is there.";
    HDR_11 = "UC-HDR-11": "The bit `coded_raw` without coded tensors.";
    HDR_12 = "UC-HDR-12": "Readers don't rely on optional feature bits.";
    HDR_13 = "UC-HDR-13": "The minor version.";
    HDR_14 = "UC-HDR-14": "Reserved bytes of the preamble.";
    HDR_15 = "UC-HDR-15": "Padding between sections.";
    HDR_16 = "UC-HDR-16": "Shard number and shard count without the feature `sharded`.";
    IDX_1 = "UC-IDX-1": "The checksum of the index.";
    IDX_2 = "UC-IDX-2": "A record lies within the index.";
    IDX_3 = "UC-IDX-3": "The number of records and the end of the index.";
    IDX_4 = "UC-IDX-4": "The order of records.";
    IDX_5 = "UC-IDX-5": "Records of unknown kinds that are not optional.";
    IDX_6 = "UC-IDX-6": "Padding inside a record.";
    IDX_7 = "UC-IDX-7": "The fields of a record fill it.";
    IDX_8 = "UC-IDX-8": "Optional records of unknown kinds are skipped.";
    IDX_9 = "UC-IDX-9": "The optional bit of records of known kinds.";
    IDX_10 = "UC-IDX-10": "No record is of kind 0.";
    IDX_11 = "UC-IDX-11": "Flags of a record.";
    NAM_1 = "UC-NAM-1": "Names of tensors and tables.";
    NAM_2 = "UC-NAM-2": "Paths of carried files.";
    NAM_3 = "UC-NAM-3": "No carried path is a folder of another.";
    DTY_1 = "UC-DTY-1": "Codes of element types.";
    TEN_1 = "UC-TEN-1": "The body of a tensor record.";
    TEN_2 = "UC-TEN-2": "The whole number of bytes of a tensor.";
    TEN_3 = "UC-TEN-3": "Groups and planes of encodings without planes.";
    TEN_4 = "UC-TEN-4": "The target of an alias.";
    TEN_5 = "UC-TEN-5": "The decoded digest of a tensor.";
    TEN_6 = "UC-TEN-6": "Unknown encodings.";
    TEN_7 = "UC-TEN-7": "Coded tensors need a feature bit.";
    TEN_8 = "UC-TEN-8": "An alias agrees with its target.";
    TEN_9 = "UC-TEN-9": "An alias has no parts.";
    TEN_10 = "UC-TEN-10": "The size of a tensor.";
    TEN_11 = "UC-TEN-11": "Rows of encodings without rows.";
    FIL_1 = "UC-FIL-1": "The body of a file record and its digest.";
    FIL_2 = "UC-FIL-2": "The data part of a file.";
    PRT_1 = "UC-PRT-1": "Unknown storage.";
    PRT_2 = "UC-PRT-2": "The number of chunks of a part.";
    PRT_3 = "UC-PRT-3": "Parts tile the data section.";
    PRT_4 = "UC-PRT-4": "The order of the parts of a record.";
    PRT_5 = "UC-PRT-5": "The length of each part.";
    PRT_6 = "UC-PRT-6": "The checksum of a chunk.";
    PRT_7 = "UC-PRT-7": "A zstd chunk is one frame.";
    PRT_8 = "UC-PRT-8": "Flags of a part.";
    PRT_9 = "UC-PRT-9": "No part is of kind 0.";
    PRT_10 = "UC-PRT-10": "Parts of unknown kinds that are not optional.";
    PRT_11 = "UC-PRT-11": "Optional parts of unknown kinds are skipped.";
    PRT_12 = "UC-PRT-12": "Parts of kinds 1 to 5 are not optional.";
    PRT_13 = "UC-PRT-13": "The optional bit of a residual.";
    PRT_14 = "UC-PRT-14": "The plane of a part.";
    PRT_15 = "UC-PRT-15": "Rules for skipped records and parts.";
    PRT_16 = "UC-PRT-16": "Parts of a record that is skipped.";
    PRT_17 = "UC-PRT-17": "The stored length of a chunk.";
    PRT_18 = "UC-PRT-18": "The stored length of a part.";
    PRT_19 = "UC-PRT-19": "No part is empty.";
    PRT_20 = "UC-PRT-20": "The parts of one record follow one another.";
    PRT_21 = "UC-PRT-21": "Padding between parts.";
    PRT_22 = "UC-PRT-22": "The parts of a record.";
    PRT_23 = "UC-PRT-23": "The content of a zstd frame.";
    PRT_24 = "UC-PRT-24": "The dictionary of a zstd frame.";
    PRT_25 = "UC-PRT-25": "The window of a zstd frame.";
    PRT_26 = "UC-PRT-26": "The content size and the checksum in a zstd frame.";
    PRT_27 = "UC-PRT-27": "Parts that may be stored as zstd.";
    PLN_1 = "UC-PLN-1": "Element types that may be stored as planes.";
    PLN_2 = "UC-PLN-2": "Dimensions of a tensor that are rows.";
    PLN_3 = "UC-PLN-3": "Planes per row.";
    PLN_4 = "UC-PLN-4": "Groups.";
    PLN_5 = "UC-PLN-5": "The order of rows.";
    PLN_6 = "UC-PLN-6": "The order of bits inside a plane.";
    PLN_7 = "UC-PLN-7": "The layout of the steps part.";
    PLN_8 = "UC-PLN-8": "Rows and columns are not empty.";
    PLN_9 = "UC-PLN-9": "The layout of the counts part.";
    PLN_10 = "UC-PLN-10": "A counts part has different counts.";
    PLN_11 = "UC-PLN-11": "Bits behind the last column.";
    PLN_12 = "UC-PLN-12": "Unused bits of the steps part.";
    PLN_13 = "UC-PLN-13": "Unused bits of the counts part.";
    LVL_1 = "UC-LVL-1": "The body of a level table record.";
    LVL_2 = "UC-LVL-2": "Levels increase strictly.";
    LVL_3 = "UC-LVL-3": "The level tables of a tensor.";
    LVL_4 = "UC-LVL-4": "The default tables.";
    LVL_5 = "UC-LVL-5": "Counts that no row has use no table.";
    VAL_1 = "UC-VAL-1": "The range of row scales.";
    VAL_2 = "UC-VAL-2": "The sixteen steps.";
    VAL_3 = "UC-VAL-3": "The value of a weight.";
    VAL_4 = "UC-VAL-4": "Rounding to the target type.";
    VAL_5 = "UC-VAL-5": "Rungs: reading fewer planes.";
    VAL_6 = "UC-VAL-6": "The sign of a product of zero.";
    VAL_7 = "UC-VAL-7": "Results that are subnormal.";
    VAL_8 = "UC-VAL-8": "The sign of what rounds to zero.";
    VAL_9 = "UC-VAL-9": "Results that overflow.";
    VAL_10 = "UC-VAL-10": "Raw elements at another type.";
    VAL_11 = "UC-VAL-11": "Infinities at another type.";
    VAL_12 = "UC-VAL-12": "NaNs at another type.";
    EXA_1 = "UC-EXA-1": "The record body of an exact model.";
    EXA_2 = "UC-EXA-2": "Fields of an exact model in range.";
    EXA_3 = "UC-EXA-3": "Symbols of a table increase strictly.";
    EXA_4 = "UC-EXA-4": "Blocks of a residual.";
    EXA_5 = "UC-EXA-5": "The expected top of a weight of planes.";
    EXA_6 = "UC-EXA-6": "The tops of a block.";
    EXA_7 = "UC-EXA-7": "Exceptions are in order.";
    EXA_8 = "UC-EXA-8": "Lower bits of wide weights.";
    EXA_9 = "UC-EXA-9": "Coders end where they began.";
    EXA_10 = "UC-EXA-10": "Rows and columns of a coded tensor.";
    EXA_11 = "UC-EXA-11": "The exact bytes of a tensor.";
    EXA_12 = "UC-EXA-12": "A file head is of a weights file that the manifest lists.";
    EXA_13 = "UC-EXA-13": "The name of an exact model.";
    EXA_14 = "UC-EXA-14": "The classes of an exact model.";
    EXA_15 = "UC-EXA-15": "The class of a model without planes.";
    EXA_16 = "UC-EXA-16": "The number of contexts of a model.";
    EXA_17 = "UC-EXA-17": "Contexts name tables that are there.";
    EXA_18 = "UC-EXA-18": "Frequencies of a table sum to its slots.";
    EXA_19 = "UC-EXA-19": "Bits that a weight takes.";
    EXA_20 = "UC-EXA-20": "No frequency is zero.";
    EXA_21 = "UC-EXA-21": "The blocks fill the residual.";
    EXA_22 = "UC-EXA-22": "The models that a residual names.";
    EXA_23 = "UC-EXA-23": "Native counts that no row has name no model.";
    EXA_24 = "UC-EXA-24": "The fields of a block.";
    EXA_25 = "UC-EXA-25": "Exceptions lie within the block.";
    EXA_26 = "UC-EXA-26": "A writer leaves out tails that are zero.";
    EXA_27 = "UC-EXA-27": "No word is left.";
    EXA_28 = "UC-EXA-28": "Element types of coded tensors.";
    EXA_29 = "UC-EXA-29": "The expected top of a weight of a coded tensor.";
    EXA_30 = "UC-EXA-30": "An alias has the source digest of its target.";
    EXA_31 = "UC-EXA-31": "The record body and the parts of a file head.";
    EXA_32 = "UC-EXA-32": "A recreated file is compared before it is called the source's.";
    EXA_33 = "UC-EXA-33": "The words of a block suffice.";
    OVL_1 = "UC-OVL-1": "The body of an overlay.";
    OVL_2 = "UC-OVL-2": "Fields of a block of an overlay.";
    OVL_3 = "UC-OVL-3": "The order of overlays.";
    OVL_4 = "UC-OVL-4": "The tensor of a block.";
    OVL_5 = "UC-OVL-5": "The range of scales.";
    OVL_6 = "UC-OVL-6": "The product of int8 factors.";
    OVL_7 = "UC-OVL-7": "The product of binary16 factors.";
    OVL_8 = "UC-OVL-8": "The value before overlays.";
    OVL_9 = "UC-OVL-9": "Effective digests.";
    OVL_10 = "UC-OVL-10": "Files of overlays.";
    OVL_11 = "UC-OVL-11": "The order of blocks.";
    OVL_12 = "UC-OVL-12": "The scaling of a block.";
    OVL_13 = "UC-OVL-13": "The part of an overlay.";
    OVL_14 = "UC-OVL-14": "The number of overlays of a pack.";
    OVL_15 = "UC-OVL-15": "The base of an overlay.";
    OVL_16 = "UC-OVL-16": "Overlays of a sharded pack.";
    OVL_17 = "UC-OVL-17": "Rows and columns of a block.";
    OVL_18 = "UC-OVL-18": "Factors of binary16 are finite.";
    OVL_19 = "UC-OVL-19": "Effective roots.";
    OVL_20 = "UC-OVL-20": "A file of overlays has its feature bit.";
    OVL_21 = "UC-OVL-21": "A file of overlays has one base.";
    OVL_22 = "UC-OVL-22": "Overlays are applied to their base alone.";
    OVL_23 = "UC-OVL-23": "The sum of base and overlays.";
    OVL_24 = "UC-OVL-24": "Rounding behind the last overlay.";
    OVL_25 = "UC-OVL-25": "Elements under overlays that are not finite.";
    ROOT_1 = "UC-ROOT-1": "The hash tree.";
    ROOT_2 = "UC-ROOT-2": "The decoded root.";
    ROOT_3 = "UC-ROOT-3": "The stored root.";
    SHD_1 = "UC-SHD-1": "Only the first shard has a manifest and attachments.";
    SHD_2 = "UC-SHD-2": "Names of shards.";
    SHD_3 = "UC-SHD-3": "The form of the index file.";
    SHD_4 = "UC-SHD-4": "Each shard that is listed is there.";
    SHD_5 = "UC-SHD-5": "Each tensor is in one shard.";
    SHD_6 = "UC-SHD-6": "The stored root of a sharded pack.";
    SHD_7 = "UC-SHD-7": "Checks of a shard by itself.";
    SHD_8 = "UC-SHD-8": "Only the first shard has carried files and file heads.";
    SHD_9 = "UC-SHD-9": "A shard lies beside the index file.";
    SHD_10 = "UC-SHD-10": "The members of the index file.";
    SHD_11 = "UC-SHD-11": "Members of the index file that a reader doesn't know.";
    SHD_12 = "UC-SHD-12": "Each shard has its place in the list.";
    SHD_13 = "UC-SHD-13": "Each shard has the length and the roots that are listed.";
    SHD_14 = "UC-SHD-14": "The map of tensors to shards.";
    SHD_15 = "UC-SHD-15": "The map names files that are listed.";
    SHD_16 = "UC-SHD-16": "Skipped records are in one shard.";
    SHD_17 = "UC-SHD-17": "The decoded root of a sharded pack.";
    SHD_18 = "UC-SHD-18": "Reasons that don't refuse a shard by itself.";
    SHD_19 = "UC-SHD-19": "One shard is no verified pack.";
    MAN_1 = "UC-MAN-1": "The manifest is canonical JSON with integers only.";
    MAN_2 = "UC-MAN-2": "The members of the manifest.";
    MAN_3 = "UC-MAN-3": "The manifest agrees with the index.";
    MAN_4 = "UC-MAN-4": "The checksum of the manifest.";
    MAN_5 = "UC-MAN-5": "Names of the roots of rungs.";
    MAN_6 = "UC-MAN-6": "Members of the manifest that a reader doesn't know.";
    MAN_7 = "UC-MAN-7": "The order of files.";
    MAN_8 = "UC-MAN-8": "The file of a tensor.";
    MAN_9 = "UC-MAN-9": "Decoded roots of rungs.";
    MAN_10 = "UC-MAN-10": "The form of the roots of rungs.";
    ATT_1 = "UC-ATT-1": "Kind and name of an attachment occur once.";
    ATT_2 = "UC-ATT-2": "The attachments fill their section.";
    ATT_3 = "UC-ATT-3": "Padding and reserved bytes of attachments.";
    ATT_4 = "UC-ATT-4": "Names of attachments.";
    ATT_5 = "UC-ATT-5": "The checksum of the attachments.";
    ATT_6 = "UC-ATT-6": "No pack is refused for what an attachment holds.";
    ATT_7 = "UC-ATT-7": "A verifier says what is wrong with an attachment.";
    RCP_1 = "UC-RCP-1": "A receipt is canonical JSON.";
    RCP_2 = "UC-RCP-2": "The members of a receipt.";
    RCP_3 = "UC-RCP-3": "The figures of a headline follow from its rows.";
    RCP_4 = "UC-RCP-4": "Rungs are without overlays.";
    RCP_5 = "UC-RCP-5": "The tokens that are scored.";
    RCP_6 = "UC-RCP-6": "The tokens that are taken from the text.";
    RCP_7 = "UC-RCP-7": "The columns of the rows.";
    RCP_8 = "UC-RCP-8": "The range of a column.";
    RCP_9 = "UC-RCP-9": "The number of largest divergences.";
    RCP_10 = "UC-RCP-10": "The largest divergences are not negative.";
    RCP_11 = "UC-RCP-11": "Each baseline has a name of its own.";
    RCP_12 = "UC-RCP-12": "The largest divergences fall.";
    RCP_13 = "UC-RCP-13": "The largest divergences are no more than all.";
    RCP_14 = "UC-RCP-14": "The members of a headline.";
    LIM_1 = "UC-LIM-1": "Ceilings of a reader.";
    LIM_2 = "UC-LIM-2": "Memory is reserved for bytes that are there.";
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
