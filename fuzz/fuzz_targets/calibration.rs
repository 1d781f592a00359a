//! Attacks the reader of calibration files: header, record, moments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ultracompress::calibration::Calibration;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = tempfile::NamedTempFile::new() else { return };
    if std::fs::write(file.path(), data).is_err() {
        return;
    }
    if let Ok(calibration) = Calibration::open(file.path()) {
        for (name, layer) in &calibration.record().layers {
            let moments = calibration.inputs(name).expect("the file holds what its record says");
            assert_eq!(moments.len() as u64, layer.cols * (layer.cols + 1) / 2);
            if layer.outputs {
                calibration.outputs(name).expect("the file holds what its record says");
            }
        }
    }
});
