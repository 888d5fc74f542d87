//! Confinement of a VMM process from the moment its machine is built.

use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use mayfly_vmm_contract::hardening::Hardening;
use mayfly_vmm_contract::preload::CONFINE;

use crate::die::{die, die_saying, errno};
use crate::{config, filter, register, zygote};

static WANTED: AtomicBool = AtomicBool::new(false);
static HARDENING: OnceLock<Hardening> = OnceLock::new();

/// What the operator chose; the default where the process is not to be confined.
pub(crate) fn hardening() -> Hardening {
    HARDENING.get().copied().unwrap_or_default()
}

/// Reads the environment. Runs before `main`, and before other threads exist.
extern "C" fn load() {
    // SAFETY: single-threaded; `getenv` gives a NUL-terminated string, which is not kept.
    unsafe {
        let value = libc::getenv(CONFINE.as_ptr());
        if !value.is_null() {
            let hardening = Hardening::parse(CStr::from_ptr(value).to_bytes())
                .unwrap_or_else(|why| die_saying(&[CONFINE.to_bytes(), why.as_bytes()], 0));
            let _ = HARDENING.set(hardening);
            libc::unsetenv(CONFINE.as_ptr());
            WANTED.store(true, Ordering::Relaxed);
        }
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static LOAD: extern "C" fn() = load;

/// Lets go of the file of guest memory, starts to serve forks where the process is a zygote, and
/// installs its filter in all its threads.
pub(crate) fn machine_built() {
    if let Some(config) = config::get() {
        register::let_go_of_the_file(config);
    }
    let control = config::get().map_or(-1, |config| config.zygote);
    if control >= 0 {
        zygote::prepare();
    }
    if WANTED.swap(false, Ordering::Relaxed) {
        let unlisted = hardening().unlisted_calls;
        let programs =
            if control >= 0 { filter::for_zygote(unlisted) } else { filter::for_vmm(unlisted) };
        let Ok(programs) = programs else { die("cannot compile the seccomp filter", 0) };
        // SAFETY: prctl takes numbers. Other processes of its user, should there be any, may not
        // look into it.
        if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) } != 0
            || !filter::install(&programs, true)
        {
            die("cannot install the seccomp filter", errno());
        }
    }
    if control >= 0 {
        zygote::start(control);
    }
}
