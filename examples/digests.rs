//! What a model packs and decodes to, as digests: run it on two machines, or with two kernels, and
//! compare the output.
//!
//! ```text
//! cargo run --release --example digests -- ./model
//! UC_KERNEL=scalar cargo run --release --example digests -- ./model
//! cargo run --release --example digests -- ./model model.cal     # packed with a calibration too
//! ```

use std::path::{Path, PathBuf};

use ultracompress::pack::{Exact, PackOptions, Recipe};
use ultracompress::source::Source;
use ultracompress::unpack::UnpackOptions;
use ultracompress::{Check, Digest, Dtype, ErrorKind, Pack, VerifyOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = args.next().ok_or("usage: digests MODEL_DIR [CALIBRATION]")?;
    let source = Source::open(&folder)?;
    let work = tempfile::tempdir()?;
    let mut plain = Recipe::default();
    plain.zstd_level = 0;
    let mut kinds = vec![
        ("planes", PackOptions::new()),
        ("planes_without_zstd", PackOptions::new().with_recipe(plain)),
        ("exact", PackOptions::new().with_exact(Exact::Residual).with_rungs(vec![3, 4])),
        ("exact_only", PackOptions::new().with_exact(Exact::Only)),
    ];
    if let Some(calibration) = args.next() {
        // A budget: planes are allocated by rows.
        let recipe: Recipe = serde_json::from_str(r#"{"calibrated":{"bpw":"5.0"}}"#)?;
        let options = PackOptions::new().with_recipe(recipe).with_calibration(Some(calibration));
        kinds.push(("calibrated", options));
    }
    for (kind, options) in kinds {
        let file = work.path().join(format!("{kind}.uc"));
        options.pack(&source, &file)?;
        println!("{kind} file {}", Digest::of(&std::fs::read(&file)?));
        let pack = Pack::open_path(&file)?;
        let report = VerifyOptions::new().verify_pack(&pack)?;
        if let Some(failure) = report.failures.first() {
            return Err(failure.reason.clone().into());
        }
        println!("{kind} decoded_root {}", report.decoded_root);
        for (rung, root) in &pack.manifest()?.rungs {
            println!("{kind} rung {rung} {root}");
        }
        if report.exact == Check::Ok {
            println!("{kind} exact {} tensors", report.exact_checked);
        }
        for (name, options) in [
            ("f32", UnpackOptions::new().with_dtype(Some(Dtype::F32))),
            ("rung_4", UnpackOptions::new().with_planes(Some(4))),
            ("exact", UnpackOptions::new().with_exact(true)),
        ] {
            let out = work.path().join(format!("{kind}.{name}"));
            match options.unpack(&pack, &out) {
                Ok(_) => print_folder(&format!("{kind} {name}"), &out)?,
                // Most kinds have no exact rung.
                Err(e) if name == "exact" && *e.kind() == ErrorKind::InvalidArgument => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

fn print_folder(what: &str, folder: &Path) -> std::io::Result<()> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    files.sort();
    for file in files.iter().filter(|f| f.extension() == Some("safetensors".as_ref())) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("{what} {name} {}", Digest::of(&std::fs::read(file)?));
    }
    Ok(())
}
