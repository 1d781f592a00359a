//! Packs a checkpoint from a program, with a recipe of its own.
//!
//! ```text
//! cargo run --release --example pack_safetensors -- ./model model.uc
//! ```

use std::error::Error;
use std::path::Path;

use ultracompress::pack::{PackOptions, Recipe, RecipeRule};
use ultracompress::source::Source;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [source, output] = &args[..] else {
        return Err("usage: pack_safetensors SOURCE OUT.uc".into());
    };
    let mut recipe = Recipe::default();
    // Value projections are the most sensitive matrices of many models.
    recipe.tensors.push(RecipeRule::parse("v_proj=6")?);
    let source = Source::open(Path::new(source))?;
    let report = PackOptions::new().with_recipe(recipe).pack(&source, Path::new(output))?;
    for t in &report.plan.tensors {
        println!("{}: {:?} ({})", t.name, t.decision, t.reason);
    }
    println!("body {:?} bpw, decoded root {}", report.stats.body_bpw, report.decoded_root);
    Ok(())
}
