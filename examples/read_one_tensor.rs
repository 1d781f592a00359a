//! Reads one tensor of a pack: two small reads open the file, one more fetches the tensor.
//!
//! ```text
//! cargo run --example read_one_tensor -- model.uc model.layers.0.mlp.up_proj.weight
//! ```

use std::error::Error;

use ultracompress::{Container, DecodeOptions, Dtype};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), name) = (args.next(), args.next()) else {
        return Err("usage: read_one_tensor PACK [TENSOR]".into());
    };
    let pack = Container::open_path(path)?;
    let Some(name) = name else {
        for t in pack.tensors() {
            println!("{} {} {:?}", t.name(), t.dtype(), t.shape());
        }
        return Ok(());
    };
    let view = pack.tensor(&name).ok_or_else(|| format!("no tensor is called {name}"))?;
    // Checksums of the chunks that are read are compared on the way; the digest is `uc verify`'s
    // job.
    let bytes = DecodeOptions::new().with_dtype(Dtype::F32).decode(&view)?;
    let values: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    println!(
        "{name}: {:?}, {} values, first {:?}",
        view.shape(),
        values.len(),
        &values[..values.len().min(4)]
    );
    Ok(())
}
