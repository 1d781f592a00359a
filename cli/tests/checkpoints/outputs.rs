//! Outputs in the way, in no folder, on a full disk.

use std::fs::{self, File};

use crate::support::checkpoint::write_weights;
use crate::support::folder::files;
use crate::{sharded, tied, write_tied};

#[cfg(unix)]
#[test]
fn outputs_that_are_inputs_under_another_name_are_refused() {
    use std::os::unix::fs::symlink;
    let desk = sharded();
    let folder = desk.folder("model");
    write_weights(&folder.join("model.safetensors"), &tied()[5..]);
    fs::write(folder.join("config.json"), b"{}").expect("can write");
    desk.run(&["reshard", "m.uc.index.json", "-o", "one.uc", "-q"]).expect(0);
    symlink("model/model.safetensors", desk.path("weights")).expect("can link");
    symlink("model/config.json", desk.path("config")).expect("can link");
    symlink("one.uc", desk.path("link.uc")).expect("can link");
    let before = files(desk.root());
    for (args, says) in [
        (&["pack", "model/model.safetensors", "-o", "weights"][..], "output is the input"),
        (&["pack", "weights", "-o", "./model/./model.safetensors"], ""),
        (&["pack", "model", "-o", "weights"], "output is a file of the source"),
        (&["pack", "model", "-o", "config"], "output is a file of the source"),
        (&["pack", "model", "-o", "model/."], "output is the input"),
        (&["reshard", "one.uc", "-o", "link.uc"], "output is the input"),
        (&["reshard", "link.uc", "-o", "./one.uc"], "output is the input"),
        (&["unpack", "one.uc", "-o", "link.uc"], "output is the input"),
        (&["unpack", "one.uc", "-o", "./one.uc"], "output is the input"),
    ] {
        let args: Vec<&str> = args.iter().copied().chain(["--force"]).collect();
        desk.run(&args).expect(1).says(says);
        assert!(files(desk.root()) == before, "{args:?} changed something");
    }
}

#[test]
fn outputs_in_no_folder_or_over_a_folder_are_refused() {
    let desk = sharded();
    desk.run(&["reshard", "m.uc.index.json", "-o", "one.uc", "-q"]).expect(0);
    write_weights(&desk.path("m.safetensors"), &tied()[5..]);
    desk.folder("taken");
    let before = desk.names();
    for (args, says) in [
        (&["pack", "m.safetensors", "-o", "no/such/out.uc"][..], "no/such: can't write here"),
        (&["pack", "m.safetensors", "-o", "no/out.uc", "--shard-size", "1M"], "can't write here"),
        (&["reshard", "one.uc", "-o", "no/out.uc"], "no: can't write here"),
        (&["unpack", "one.uc", "-o", "no/out"], "no: can't write here"),
        (&["pack", "m.safetensors", "-o", "taken", "--force"], "taken: is a folder"),
        (&["reshard", "one.uc", "-o", "taken", "--force"], "taken: is a folder"),
        (&["unpack", "one.uc", "-o", "m.safetensors"], "m.safetensors: exists and is no folder"),
    ] {
        desk.run(args).expect(1).says(says);
        assert_eq!(desk.names(), before, "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let desk = sharded();
    desk.run(&["reshard", "m.uc.index.json", "-o", "one.uc", "-q"]).expect(0);
    write_weights(&desk.path("m.safetensors"), &tied()[5..]);
    let folder = desk.folder("locked");
    let mode = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("mine");
    mode(0o555);
    // Permissions don't bind everyone.
    if File::create(folder.join("probe")).is_err() {
        for args in [
            &["pack", "m.safetensors", "-o", "locked/out.uc"][..],
            &["reshard", "one.uc", "-o", "locked/out.uc"],
            &["unpack", "one.uc", "-o", "locked/out"],
        ] {
            desk.run(args).expect(1).says("locked: can't write here");
        }
    }
    mode(0o755);
}

/// A file may grow to `512 * blocks` bytes: behind that a write fails as on a full disk.
#[cfg(target_os = "linux")]
fn full_after(blocks: u64) -> String {
    format!("trap '' XFSZ && ulimit -f {blocks}")
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_names_the_output_and_leaves_nothing() {
    let desk = sharded();
    write_tied(&desk.folder("source"));
    desk.run(&["reshard", "m.uc.index.json", "-o", "one.uc", "-q"]).expect(0);
    let before = desk.names();
    for (args, output) in [
        (&["pack", "source", "-o", "out.uc", "--raw-all"][..], "out.uc"),
        (
            &["pack", "source", "-o", "out.uc", "--raw-all", "--shard-size", "1M"],
            "out-00001-of-00003.uc",
        ),
        (&["reshard", "one.uc", "-o", "out.uc"], "out.uc"),
        (&["reshard", "one.uc", "-o", "out.uc", "--shard-size", "1M"], "out-00001-of-00003.uc"),
        (&["unpack", "one.uc", "-o", "out"], "model-00001-of-00002.safetensors"),
    ] {
        // At the first write, in the middle, and in what is written last.
        for blocks in [0, 300, 1200] {
            let ran = desk.run_within(&full_after(blocks), args).expect(1);
            assert!(ran.stderr.contains("File too large"), "{args:?}: {}", ran.stderr);
            let named = format!("{output}: ");
            // Or the list of what is done.
            let named = ran.stderr.contains(&named) || ran.stderr.contains("out.uc.pack-state: ");
            assert!(named, "{args:?}, {blocks}: {}", ran.stderr);
            assert!(!ran.stderr.contains("one.uc: "), "the input is sound: {}", ran.stderr);
            assert_eq!(desk.names(), before, "{args:?}, {blocks}");
        }
    }
}
