//! Packs written in memory.

use std::io::Cursor;

use ultracompress::{
    Dtype, EncodeOptions, EncodedTensor, Manifest, PackWriter, StoredFile, WriteSummary,
};

pub type MemoryWriter = PackWriter<Cursor<Vec<u8>>>;

pub fn writer() -> MemoryWriter {
    PackWriter::new(Cursor::new(Vec::new())).expect("memory")
}

/// A pack that is being written, and its manifest.
pub struct NewPack {
    pub writer: MemoryWriter,
    pub manifest: Manifest,
}

impl NewPack {
    pub fn new() -> Self {
        Self { writer: writer(), manifest: Manifest::new("test") }
    }

    /// Adds a tensor of these source bytes.
    pub fn add(&mut self, name: &str, tensor: EncodedTensor, source: &[u8]) {
        self.manifest.add_tensor(name, source, "test");
        self.writer.add_tensor(tensor).expect("memory");
    }

    /// Adds a tensor as it is.
    pub fn add_raw(&mut self, name: &str, dtype: Dtype, shape: &[u64], bytes: &[u8]) {
        let tensor = EncodedTensor::raw(name, dtype, shape, bytes, &EncodeOptions::new());
        self.add(name, tensor.expect("valid"), bytes);
    }

    pub fn add_file(&mut self, file: StoredFile) {
        self.manifest.add_file(&file);
        self.writer.add_file(file).expect("memory");
    }

    pub fn finish(self) -> (WriteSummary, Vec<u8>) {
        let manifest = self.manifest.to_bytes().expect("canonical");
        let (summary, file) = self.writer.finish(&manifest).expect("valid");
        (summary, file.into_inner())
    }

    /// The file.
    pub fn bytes(self) -> Vec<u8> {
        self.finish().1
    }
}

/// A pack of one tensor `w`, whose source isn't known.
pub fn pack_of_one(tensor: EncodedTensor) -> Vec<u8> {
    let mut pack = NewPack::new();
    pack.add("w", tensor, b"");
    pack.bytes()
}
