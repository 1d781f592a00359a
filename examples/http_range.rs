//! Reads one tensor of a pack on a web server, and says how much of the file that took.
//!
//! ```text
//! cargo run --example http_range -- model.uc [TENSOR] [--serve]
//! ```
//!
//! The server runs inside the example, on this machine. With `--serve` it goes on until it is
//! stopped, so that `uc info http://127.0.0.1:PORT/model.uc` can be tried.

use std::error::Error;
use std::fs::File;
use std::process::ExitCode;

use ultracompress::{DecodeOptions, Encoding, Pack};

#[path = "../tests/support/range_server.rs"]
mod range_server;

use range_server::{Count, RangeServer};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let keep_serving = args.iter().any(|arg| arg == "--serve");
    args.retain(|arg| arg != "--serve");
    let (Some(path), name) = (args.first(), args.get(1)) else {
        eprintln!("usage: http_range PACK.uc [TENSOR] [--serve]");
        return Ok(ExitCode::from(2));
    };
    // Any web server that answers ranges will do.
    let server = RangeServer::start()?;
    server.serve("model.uc", File::open(path)?)?;
    let url = server.url("model.uc");
    let print = |what: &str| {
        let Count { requests, bytes } = server.take_count("model.uc");
        println!("{what}: {bytes} bytes, requests: {requests}");
    };

    // An address works wherever a path does.
    let pack = Pack::open_path(&url)?;
    println!("{url}: {} bytes", pack.bytes());
    print("to open it");

    let planes = |encoding: &Encoding| matches!(encoding, Encoding::Planes { .. });
    let view = match name {
        Some(name) => pack.tensor(name),
        None => pack.tensors().find(|t| planes(&t.entry().encoding)),
    };
    let view = view.ok_or("no such tensor")?;
    let bytes = view.decode()?;
    println!("{}: {} {:?}, {} bytes decoded", view.name(), view.dtype(), view.shape(), bytes.len());
    print("for the tensor");

    // Planes lie most significant first, so that a coarse tensor is a shorter range.
    DecodeOptions::new().with_planes(4).decode(&view)?;
    print("at rung 4");

    if keep_serving {
        println!("serving {url} until stopped");
        loop {
            std::thread::park();
        }
    }
    Ok(ExitCode::SUCCESS)
}
