//! The choice of the kernel: kernels by name, those that the CPU can run, and the arm of each.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// An implementation of the inner loops. Decoded values and encoded bytes are the same from all of
/// them; the last bits of products may differ (see [`matrix`](crate::matrix)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// Portable code.
    Scalar,
    /// x86-64 with AVX2, FMA, F16C and POPCNT (Haswell, Zen and later).
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL, VBMI and VNNI and with GFNI (Ice Lake, Zen 4 and later).
    Avx512,
    /// AArch64, little-endian.
    Neon,
}

/// Every kernel, fastest first.
const ALL: [Kernel; 4] = [Kernel::Avx512, Kernel::Avx2, Kernel::Neon, Kernel::Scalar];

impl Kernel {
    /// The environment variable that names the kernel to use: `scalar`, `avx2`, `avx512` or `neon`.
    pub const VARIABLE: &'static str = "UC_KERNEL";

    /// The kernels that this CPU can run, fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        ALL.into_iter().filter(|k| k.is_available())
    }

    /// The fastest kernel that this CPU can run.
    pub fn detect() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().next().unwrap_or(Self::Scalar))
    }

    /// The kernel that [`Kernel::VARIABLE`] names, or the fastest when it isn't set. The variable
    /// is read once.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that doesn't exist or a kernel that this CPU can't run.
    pub fn selected() -> Result<Self> {
        static NAMED: OnceLock<Option<String>> = OnceLock::new();
        let named = NAMED.get_or_init(|| {
            let value = std::env::var_os(Self::VARIABLE)?;
            (!value.is_empty()).then(|| value.to_string_lossy().into_owned())
        });
        match named {
            None => Ok(Self::detect()),
            Some(name) => name
                .parse::<Self>()
                .and_then(Self::require)
                .map_err(|e| Error::argument(format!("{}: {e}", Self::VARIABLE))),
        }
    }

    /// This kernel, if the CPU can run it.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn require(self) -> Result<Self> {
        if self.is_available() {
            return Ok(self);
        }
        Err(Error::argument(format!("this CPU can't run the kernel {self}")))
    }

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("gfni")
            }
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns, reason = "kernels of other architectures")]
            _ => false,
        }
    }

    /// Its name: `scalar`, `avx2`, `avx512` or `neon`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kernel {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        ALL.into_iter().find(|k| k.name() == name).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|k| k.name()).collect();
            Error::argument(format!("no kernel \"{name}\", there are {}", names.join(", ")))
        })
    }
}

/// Runs the arm of `kernel`, or the last where it has none. Arms come in this order; each can be
/// left out, and each can have a guard: `avx512`, `avx2`, `x86` for both, `neon`. Those of other
/// architectures aren't compiled.
///
/// # Safety
/// The CPU can run `kernel`, with which arms may rely on its instructions.
macro_rules! dispatch {
    (
        unsafe $kernel:expr,
        $(avx512 $(if $if_avx512:expr)? => $avx512:expr,)?
        $(avx2 $(if $if_avx2:expr)? => $avx2:expr,)?
        $(x86 $(if $if_x86:expr)? => $x86:expr,)?
        $(neon $(if $if_neon:expr)? => $neon:expr,)?
        _ => $portable:expr $(,)?
    ) => {
        match $kernel {
            $(
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::choice::Kernel::Avx512 $(if $if_avx512)? => {
                    // SAFETY: promised where `unsafe` was written.
                    unsafe { $avx512 }
                }
            )?
            $(
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::choice::Kernel::Avx2 $(if $if_avx2)? => {
                    // SAFETY: as above.
                    unsafe { $avx2 }
                }
            )?
            $(
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::choice::Kernel::Avx512 | $crate::kernels::choice::Kernel::Avx2
                    $(if $if_x86)? => {
                    // SAFETY: as above.
                    unsafe { $x86 }
                }
            )?
            $(
                #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
                $crate::kernels::choice::Kernel::Neon $(if $if_neon)? => {
                    // SAFETY: as above.
                    unsafe { $neon }
                }
            )?
            _ => $portable,
        }
    };
}

pub(super) use dispatch;
