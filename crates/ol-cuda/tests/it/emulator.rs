//! A device that runs the kernels thread by thread on the CPU.
#![expect(
    unsafe_code,
    reason = "calls C that the C compiler made from the kernels"
)]

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;
use ol_cuda::{Backend, GpuError, Kernel, Operand, Product};
use ol_types::keccak256;

/// Words before and after each allocation that nothing may write.
const GUARD: usize = 8;
const MARK: u64 = 0xA5A5_5A5A_DEAD_BEEF;

/// All that the emulated kernels are made of.
const SOURCES: &[u8] = concat!(
    include_str!("emulator.h"),
    include_str!("../../kernels/kernels.h"),
    include_str!("../../kernels/kernels.cu")
)
.as_bytes();

/// The kernels, compiled as C by the compiler that Rust links with; once for all
/// tests, each of which may be a process.
fn library() -> &'static Mutex<Library> {
    static LIBRARY: OnceLock<Mutex<Library>> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let kept = folder.join(format!("kernels-{}.so", keccak256(SOURCES)));
        if kept.exists() {
            // SAFETY: the library has no constructors.
            return Mutex::new(unsafe { Library::new(&kept) }.unwrap());
        }
        let dir = tempfile::tempdir_in(folder).unwrap();
        let out = dir.path().join("kernels.so");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let status = Command::new(&compiler)
            .args(["-std=gnu17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"])
            .arg("-U_FORTIFY_SOURCE")
            .args(["-Wall", "-Werror", "-x", "c", "-I"])
            .arg(root.join("tests/it"))
            .arg(root.join("kernels/kernels.cu"))
            .arg("-o")
            .arg(&out)
            .arg("-lm")
            .status()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", compiler.display()));
        assert!(status.success(), "the kernels do not compile as C");
        // Whole or not at all: others may be looking.
        std::fs::rename(&out, &kept).unwrap();
        // SAFETY: as above.
        Mutex::new(unsafe { Library::new(&kept) }.unwrap())
    })
}

/// The device.
#[derive(Debug, Default)]
pub(crate) struct Emulator;

/// Its memory: aligned words between guards.
#[derive(Debug)]
pub(crate) struct EmulatedMemory {
    words: Box<[u64]>,
    size_bytes: usize,
}

impl EmulatedMemory {
    fn pointer(&self) -> *mut u8 {
        self.words[GUARD..].as_ptr().cast_mut().cast()
    }

    fn range(&self, offset: usize, len: usize) -> Result<*mut u8, GpuError> {
        if offset + len > self.size_bytes {
            return Err(GpuError::Invalid(format!(
                "{len} bytes at {offset} of {}",
                self.size_bytes
            )));
        }
        // SAFETY: within the allocation, as checked.
        Ok(unsafe { self.pointer().add(offset) })
    }

    fn get(&self, i: usize, bf16: bool) -> f32 {
        let base = self.pointer();
        // SAFETY: `multiply` has checked the operand's span.
        unsafe {
            if bf16 {
                half::bf16::from_bits(*base.cast::<u16>().add(i)).to_f32()
            } else {
                *base.cast::<f32>().add(i)
            }
        }
    }
}

impl Drop for EmulatedMemory {
    fn drop(&mut self) {
        let end = self.words.len() - GUARD;
        // SAFETY: kernels write behind Rust's back; a volatile read sees it.
        let whole = |word: &u64| unsafe { std::ptr::read_volatile(word) } == MARK;
        let intact = self.words[..GUARD].iter().all(whole) && self.words[end..].iter().all(whole);
        assert!(
            intact || std::thread::panicking(),
            "a kernel wrote outside {} bytes",
            self.size_bytes
        );
    }
}

impl Backend for Emulator {
    type Memory = EmulatedMemory;

    fn allocate(&self, _what: &'static str, size_bytes: usize) -> Result<EmulatedMemory, GpuError> {
        let mut words = vec![MARK; 2 * GUARD + size_bytes.div_ceil(8)];
        let end = words.len() - GUARD;
        words[GUARD..end].fill(0);
        Ok(EmulatedMemory {
            words: words.into_boxed_slice(),
            size_bytes,
        })
    }

    fn size_bytes(&self, memory: &EmulatedMemory) -> usize {
        memory.size_bytes
    }

    fn address(&self, memory: &EmulatedMemory) -> u64 {
        memory.pointer() as u64
    }

    fn write(
        &self,
        memory: &mut EmulatedMemory,
        offset_bytes: usize,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        let to = memory.range(offset_bytes, bytes.len())?;
        // SAFETY: `range` has checked it; `bytes` is other memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn read(
        &self,
        memory: &EmulatedMemory,
        offset_bytes: usize,
        bytes: &mut [u8],
    ) -> Result<(), GpuError> {
        let from = memory.range(offset_bytes, bytes.len())?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        blocks: (usize, usize),
        arguments: &[u8],
    ) -> Result<(), GpuError> {
        // One at a time: the emulator's state is static.
        let library = library().lock().unwrap_or_else(PoisonError::into_inner);
        type Entry = unsafe extern "C" fn(*const u8, i32, i32) -> i32;
        // SAFETY: `emulator.h` gives every kernel this signature; the caller
        // answers for the arguments.
        let status = unsafe {
            let entry = library.get::<Entry>(kernel.name().as_bytes()).unwrap();
            entry(
                arguments.as_ptr(),
                i32::try_from(blocks.0).unwrap(),
                i32::try_from(blocks.1).unwrap(),
            )
        };
        assert_eq!(status, 0, "{}: threads parted at a barrier", kernel.name());
        Ok(())
    }

    fn multiply(
        &self,
        p: &Product,
        a: Operand<'_, EmulatedMemory>,
        b: Operand<'_, EmulatedMemory>,
        c: Operand<'_, EmulatedMemory>,
    ) -> Result<(), GpuError> {
        let stored = |transposed: bool, i: usize, j: usize, stride: usize| {
            if transposed {
                j * stride + i
            } else {
                i * stride + j
            }
        };
        let width = if p.bf16 { 2 } else { 4 };
        if p.m == 0 || p.n == 0 {
            return Ok(());
        }
        if p.k > 0 {
            let last_a = a.offset + stored(p.a_transposed, p.m - 1, p.k - 1, a.stride);
            let last_b = b.offset + stored(p.b_transposed, p.k - 1, p.n - 1, b.stride);
            a.memory.range(last_a * width, width)?;
            b.memory.range(last_b * width, width)?;
        }
        let last_c = c.offset + (p.m - 1) * c.stride + p.n - 1;
        c.memory.range(last_c * 4, 4)?;
        let out = c.memory.pointer().cast::<f32>();
        for i in 0..p.m {
            for j in 0..p.n {
                let mut sum = 0.0_f64;
                for l in 0..p.k {
                    let x = a
                        .memory
                        .get(a.offset + stored(p.a_transposed, i, l, a.stride), p.bf16);
                    let y = b
                        .memory
                        .get(b.offset + stored(p.b_transposed, l, j, b.stride), p.bf16);
                    sum += f64::from(x) * f64::from(y);
                }
                // SAFETY: `range` has checked the last element.
                unsafe {
                    let to = out.add(c.offset + i * c.stride + j);
                    let held = if p.beta == 0.0 { 0.0 } else { p.beta * *to };
                    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32")]
                    let sum = sum as f32;
                    *to = p.alpha * sum + held;
                }
            }
        }
        Ok(())
    }
}
