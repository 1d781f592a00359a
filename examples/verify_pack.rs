//! Verifies a pack from a program and compares its decoded root with one that was published.
//!
//! ```text
//! cargo run --release --example verify_pack -- model.uc [DECODED_ROOT]
//! ```

use std::error::Error;

use ultracompress::{Container, VerifyOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: verify_pack PACK [DECODED_ROOT]")?;
    let pack = Container::open_path(path)?;
    let report = VerifyOptions::new().verify(&pack)?;
    for f in &report.failures {
        println!("{:?} {:?} at {:?}: {}", f.tensor, f.part, f.offset_bytes, f.reason);
    }
    if !report.is_ok() {
        return Err("the pack is damaged".into());
    }
    println!("{} tensors decode to their digests", report.tensors_checked);
    match args.next() {
        Some(root) if root == report.decoded_root.to_string() => {
            println!("equal to the root given")
        }
        Some(_) => return Err("the decoded root is another one".into()),
        None => println!("decoded root {}: compare it with a published one", report.decoded_root),
    }
    Ok(())
}
