//! Packs that claim more than they hold, and content that grows.

use std::fs;

use ultracompress::{
    Container, Dtype, EncodeOptions, EncodedTensor, Error, ErrorKind, Limit, Limits, ReadAt, Rule,
    StoredFile, VerifyOptions,
};

use crate::says;
use crate::support::damage::{patched_anywhere, word};
use crate::support::folder::Desk;
use crate::support::pack::{NewPack, writer};
use crate::support::random::size;

// ---- Claims -------------------------------------------------------------------------------------

#[cfg(target_os = "linux")]
const CLAIMS: [u64; 6] = [1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, u64::MAX, u64::MAX - 63];

#[cfg(target_os = "linux")]
#[test]
fn claimed_lengths_are_refused_without_their_memory() {
    let desk = Desk::new();
    let mut pack = NewPack::new();
    pack.add_raw("w", Dtype::U8, &[3], &[1, 2, 3]);
    let file = pack.bytes();
    let pack = Container::open(&file[..]).expect("valid");
    // The part header and its chunk table end the index.
    let header = size(pack.preamble().index_offset + pack.preamble().index_len) - 40;
    let part = &pack.tensor("w").expect("written").entry().parts[0];
    assert_eq!(file[header + 8..header + 16], part.offset.to_le_bytes());
    assert!(patched_anywhere(&file, 40, &file[40..48]) == file);
    let run = |bytes: &[u8]| {
        desk.write("m.uc", bytes);
        for args in
            [&["verify", "m.uc", "-j", "2"][..], &["unpack", "m.uc", "-o", "out", "-j", "2"]]
        {
            let ran = desk.run_within("ulimit -v 262144", args);
            let ran = ran.expect(1).says("m.uc: ");
            assert!(!ran.stderr.contains("allocat"), "{}", ran.stderr);
        }
        assert_eq!(desk.names(), ["m.uc"]);
    };
    for claim in CLAIMS {
        // Of the core, the index, the manifest, the file.
        for at in [32, 40, 48, 64, 160] {
            run(&patched_anywhere(&file, at, &claim.to_le_bytes()));
        }
        // Where a part is, how long it is stored, how long its content is.
        for at in [8, 16, 24] {
            run(&patched_anywhere(&file, header + at, &claim.to_le_bytes()));
        }
    }
    // Chunks of a part, records of the index.
    run(&patched_anywhere(&file, header + 4, &u32::MAX.to_le_bytes()));
    run(&patched_anywhere(&file, 72, &u32::MAX.to_le_bytes()));
}

/// A file that says it is longer than any disk: what a web server may claim.
#[derive(Debug)]
struct Endless(Vec<u8>, u64);

impl ReadAt for Endless {
    fn len_bytes(&self) -> Result<u64, Error> {
        Ok(self.1)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        for (at, byte) in (offset..).zip(buf) {
            *byte = usize::try_from(at).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(0);
        }
        Ok(())
    }
}

#[test]
fn an_endless_manifest_is_refused_by_its_length() {
    let mut writer = writer();
    let tensor = EncodedTensor::raw("w", Dtype::U8, &[3], &[1, 2, 3], &EncodeOptions::new());
    writer.add_tensor(tensor.expect("valid")).expect("memory");
    let file = writer.finish(b"{}").expect("not looked at").1.into_inner();
    let manifest_offset = word(&file, 56);
    for len in [1 << 40, 1 << 62, (1 << 63) - (1 << 20)] {
        let end = manifest_offset + len;
        let mut bytes = patched_anywhere(&file, 64, &len.to_le_bytes());
        bytes = patched_anywhere(&bytes, 32, &end.to_le_bytes());
        bytes = patched_anywhere(&bytes, 160, &end.to_le_bytes());
        let e = Container::open(Endless(bytes.clone(), end)).expect_err("too long");
        says(&e, &ErrorKind::LimitExceeded(Limit::ManifestBytes), &[&len.to_string()]);
        // Whoever lifts the limit is told what it would take.
        let limits = Limits::default().with_max_manifest_bytes(u64::MAX);
        let pack = Container::open_with(Endless(bytes, end), limits).expect("allowed");
        let e = VerifyOptions::new().verify(&pack).expect_err("too long");
        says(&e, &ErrorKind::InvalidArgument, &["max-ram", "needs at least"]);
    }
}

// ---- Content that grows -------------------------------------------------------------------------

/// 48 MiB of zeros are a few KiB of zstd.
#[cfg(target_os = "linux")]
#[test]
fn a_file_far_larger_than_its_pack_goes_by_in_pieces() {
    let desk = Desk::new();
    let zeros = vec![0; 48 << 20];
    let carried = StoredFile::new("zeros.bin", &zeros, Some(3)).expect("valid");
    drop(zeros);
    let mut pack = NewPack::new();
    pack.add_file(carried);
    let file = pack.bytes();
    assert!(file.len() < 16 << 10, "{} bytes", file.len());
    desk.write("m.uc", &file);

    let pack = Container::open_with(file, Limits::default().with_max_file_bytes(1 << 20));
    let pack = pack.expect("its files are not looked at");
    let entry = &pack.index().files[0];
    let e = pack.read_file(entry).expect_err("beyond the limit");
    says(&e, &ErrorKind::LimitExceeded(Limit::FileBytes), &["zeros.bin", "50331648", "1048576"]);

    // Too little for the content beside the program itself.
    let limit = format!("ulimit -v {}", 72 << 10);
    desk.run_within(&limit, &["verify", "m.uc", "-j", "2", "-q"]).expect(0);
    let unpack = ["unpack", "m.uc", "-o", "out", "-j", "2", "-q", "--max-ram", "128M"];
    desk.run_within(&limit, &unpack).expect(0);
    assert_eq!(fs::metadata(desk.path("out/zeros.bin")).expect("unpacked").len(), 48 << 20);
}

#[test]
fn content_that_breaks_its_own_digest_is_told_apart_from_a_limit() {
    let text = b"a".repeat(5000);
    let carried = StoredFile::new("a.txt", &text, None).expect("valid");
    let mut pack = NewPack::new();
    pack.add_file(carried);
    let file = pack.bytes();
    let limits = Limits::default().with_max_file_bytes(5000);
    let pack = Container::open_with(file, limits).expect("valid");
    assert!(pack.read_file(&pack.index().files[0]).expect("at the limit") == text);
    let mut entry = pack.index().files[0].clone();
    entry.sha256 = ultracompress::Digest([0; 32]);
    let e = pack.read_file(&entry).expect_err("another digest");
    says(&e, &ErrorKind::Integrity, &["a.txt", &Rule::FIL_1.to_string()]);
}
