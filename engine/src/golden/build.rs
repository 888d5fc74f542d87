//! Builds a golden image: recipe, boot artifacts, boot, warm-up, snapshot, working set.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mayfly_golden_images::{BootArtifacts, Builder, FIRST_ID, IDS, Recipe, Step};
use mayfly_host::layout::Layout;
use mayfly_snapshotter::{Digest, Error, Manifest, NewSnapshot, SealKey, Store, VmShape};
use mayfly_vmm::{Accel, MachineShape};

use super::artifacts::{ArtifactSeal, reference};
use super::boot::{Boot, Confines};
use super::error::GoldenError;
use super::first_steps::FirstSteps;
use super::load::{accel_of, check_clock, label};
use super::manage;
use super::pins::host_pins;
use super::template::{self, StoppedTemplate, TemplateLimits};
use super::tsc;
use super::working_set;
use crate::engine::Engine;
use crate::kvm;
use crate::progress::{Progress, Unit};

/// Part of every build key: changes when the making of a golden changes, so that old goldens are
/// built again.
const BUILD_VERSION: u32 = 3;

/// Options of a build.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Build even when the golden is there with equal inputs.
    pub rebuild: bool,
    /// Accelerator; `None` probes this host.
    pub accel: Option<Accel>,
    /// Bounds on the steps in the guest.
    pub limits: TemplateLimits,
}

/// The outcome of a build.
#[derive(Debug, Clone)]
pub struct Built {
    /// The golden's manifest.
    pub manifest: Manifest,
    /// Whether it was there already with equal inputs, and nothing was done.
    pub up_to_date: bool,
}

/// Builds the golden of `recipe` and stores it. Earlier goldens stay as they are until the new one
/// is complete.
///
/// # Errors
/// [`GoldenError`]; nothing is left behind then, and an earlier golden of the same name is intact.
pub async fn build(
    engine: &Engine,
    recipe: Recipe,
    options: &BuildOptions,
    progress: Arc<dyn Progress>,
    cancel: Arc<AtomicBool>,
) -> Result<Built, GoldenError> {
    let layout = engine.layout().clone();
    let driver = engine.driver().clone();
    let name = recipe.name.clone();
    let (warm_up, default_user) = (recipe.warm_up.clone(), recipe.default_user.clone());
    let seal = ArtifactSeal::of(&layout)?;
    let artifacts =
        boot_artifacts(engine, recipe, seal.clone(), progress.clone(), cancel.clone()).await?;
    check(&cancel)?;
    let kernel_blake3 = Digest::from(artifacts.kernel.blake3);

    let accel = match options.accel {
        Some(Accel::Tcg) => Accel::Tcg,
        wanted => {
            progress.begin("probe KVM", None, Unit::Items);
            let (kernel, initramfs) = (&artifacts.kernel.path, &artifacts.initramfs.path);
            let probe =
                kvm::Probe { driver: &*driver, instance: engine.instance(), kernel, initramfs };
            accelerator(wanted.is_some(), &kvm::verdict(&layout, probe, &kernel_blake3).await)?
        }
    };
    let pins = host_pins(&*driver, accel, kernel_blake3);
    let build_key = build_key(&artifacts, &pins);
    if !options.rebuild
        && let Some(manifest) = existing(&layout, &name, &build_key, &artifacts)?
    {
        return Ok(Built { manifest, up_to_date: true });
    }

    let shape = MachineShape {
        accel,
        vcpus: artifacts.vcpus,
        memory_bytes: u64::from(artifacts.memory_mib) << 20,
    };
    let confines = Confines::take(engine, &format!("golden-{name}"), &shape)?;
    let what = Boot {
        name: &name,
        artifacts: &artifacts,
        seal: &seal,
        shape: &shape,
        confines: &confines,
    };
    let first_steps = FirstSteps::new(artifacts.docker, default_user.as_deref(), &warm_up);
    let make = template::make(&*driver, what, &first_steps, &options.limits, &*progress);
    let stopped = tokio::select! {
        stopped = make => stopped?,
        () = cancelled(&cancel) => return Err(GoldenError::Cancelled),
    };

    let manifest = {
        let (layout, progress, cancel, name) =
            (layout.clone(), progress.clone(), cancel.clone(), name.clone());
        blocking(move || {
            progress.begin("hash disks", None, Unit::Items);
            let mut labels = labels(&layout, &artifacts, &warm_up, &stopped)?;
            labels.extend(default_user.map(|user| (label::DEFAULT_USER.to_owned(), user)));
            let what = What { name: &name, artifacts: &artifacts, shape: &shape, labels };
            store(&layout, what, pins, build_key, &stopped, &*progress, &cancel)
        })
        .await?
    };
    progress.begin("record working set", None, Unit::Items);
    let recording = working_set::record(engine, &name);
    let chunks = tokio::select! {
        chunks = recording => chunks?,
        () = cancelled(&cancel) => return Err(GoldenError::CancelledLate { name }),
    };
    let updated = {
        let (layout, name) = (layout.clone(), name.clone());
        blocking(move || {
            let store =
                Store::open(layout.store())?.with_seal_key(SealKey::load(layout.seal_key())?);
            store.set_working_set(&name, chunks)?;
            Ok(store.sealed(&name)?.0)
        })
        .await?
    };
    progress.end();
    tracing::info!(golden = %name, stored = manifest.stored_bytes(), "golden built");
    Ok(Built { manifest: updated, up_to_date: false })
}

/// KVM when it is usable, else software emulation; unless somebody asked for KVM.
fn accelerator(
    asked: bool,
    kvm::Found { verdict, is_new }: &kvm::Found,
) -> Result<Accel, GoldenError> {
    match verdict.obstacle() {
        None => Ok(Accel::Kvm),
        Some(obstacle) if asked => Err(obstacle.into()),
        Some(obstacle) => {
            // A host without the device is an ordinary one; a device that does not do its work
            // wants an explanation, once.
            if *is_new && !matches!(verdict, kvm::Verdict::NoDevice { .. }) {
                tracing::warn!(
                    "KVM does not run guests here, so this golden is for software emulation (TCG); \
                     `mayfly doctor` says why"
                );
            }
            tracing::debug!(%obstacle, "KVM is not used");
            Ok(Accel::Tcg)
        }
    }
}

async fn boot_artifacts(
    engine: &Engine,
    recipe: Recipe,
    seal: Arc<ArtifactSeal>,
    progress: Arc<dyn Progress>,
    cancel: Arc<AtomicBool>,
) -> Result<BootArtifacts, GoldenError> {
    if engine.uids().range().meets(FIRST_ID, IDS) {
        return Err(GoldenError::Ids { range: engine.uids().range().into() });
    }
    let builder = Builder::new(engine.layout().images(), engine.guest_agent()?, seal);
    blocking(move || Ok(builder.build(&recipe, &ImageProgress(progress), &cancel)?)).await
}

/// Everything a golden's content depends on.
fn build_key(artifacts: &BootArtifacts, pins: &mayfly_snapshotter::HostPins) -> String {
    let inputs = serde_json::json!({
        "version": BUILD_VERSION,
        "artifacts": artifacts.key.to_string(),
        "cmdline": artifacts.cmdline,
        "pins": pins,
        "vcpus": artifacts.vcpus,
        "memory_mib": artifacts.memory_mib,
        "warm": artifacts.warm_commands,
    });
    blake3::hash(inputs.to_string().as_bytes()).to_hex().to_string()
}

/// The golden of this name, when it is complete, sealed, and was made from the same inputs and on
/// this very base disk, which may have been built again.
fn existing(
    layout: &Layout,
    name: &str,
    build_key: &str,
    artifacts: &BootArtifacts,
) -> Result<Option<Manifest>, GoldenError> {
    if !layout.store().exists() {
        return Ok(None);
    }
    let store = Store::open_read_only(layout.store())?
        .with_seal_key(SealKey::load_or_create(layout.seal_key())?);
    let found = match store.sealed(name) {
        Ok((manifest, _)) => Some(manifest)
            .filter(|m| m.build_key == build_key && m.base_disk == reference(&artifacts.base_disk)),
        Err(Error::UnknownGolden { .. }) => None,
        Err(
            error
            @ (Error::Unsealed { .. } | Error::WrongSeal { .. } | Error::DamagedGolden { .. }),
        ) => {
            tracing::info!(%error, "building it again");
            None
        }
        Err(error) => return Err(error.into()),
    };
    Ok(found.filter(|m| {
        m.working_set_chunks > 0
            && (accel_of(m).is_ok_and(|accel| accel == Accel::Kvm) || check_clock(m).is_ok())
    }))
}

/// Labels of the golden's manifest.
fn labels(
    layout: &Layout,
    artifacts: &BootArtifacts,
    warm_up: &[String],
    stopped: &StoppedTemplate,
) -> Result<BTreeMap<String, String>, GoldenError> {
    let delta = hash_of(&stopped.disk_delta).map_err(|cause| GoldenError::Io {
        action: "read the disk delta in",
        path: layout.disks(),
        cause,
    })?;
    let mut labels = BTreeMap::from([
        (label::IMAGE.to_owned(), artifacts.key.to_string()),
        (label::DELTA_BLAKE3.to_owned(), delta.to_string()),
        (label::TSC_KHZ.to_owned(), tsc::khz().to_string()),
        (label::PACKAGES.to_owned(), artifacts.packages.join("\n")),
        (label::WARM_UP.to_owned(), serde_json::json!(warm_up).to_string()),
    ]);
    if artifacts.docker {
        labels.insert(label::DOCKER.to_owned(), "true".to_owned());
    }
    Ok(labels)
}

/// What a golden image is called and made of.
struct What<'a> {
    name: &'a str,
    artifacts: &'a BootArtifacts,
    shape: &'a MachineShape,
    labels: BTreeMap<String, String>,
}

fn store(
    layout: &Layout,
    What { name, artifacts, shape, labels }: What<'_>,
    pins: mayfly_snapshotter::HostPins,
    build_key: String,
    stopped: &StoppedTemplate,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Manifest, GoldenError> {
    let store =
        Store::open(layout.store())?.with_seal_key(SealKey::load_or_create(layout.seal_key())?);
    let temporary =
        |cause| GoldenError::Io { action: "write a file in", path: std::env::temp_dir(), cause };
    let mut device = tempfile::tempfile().map_err(temporary)?;
    device.write_all(&stopped.device_state).map_err(temporary)?;

    let base_disk = reference(&artifacts.base_disk);
    let replaced = store.manifest(name).ok();
    let snapshot = NewSnapshot {
        name,
        build_key,
        pins,
        vm: VmShape {
            vcpus: shape.vcpus,
            memory_bytes: shape.memory_bytes,
            kernel_cmdline: artifacts.cmdline.clone(),
        },
        base_disk,
        ram: (&stopped.ram).into(),
        device: (&device).into(),
        disk: (&stopped.disk_delta).into(),
        labels,
    };
    let mut begun = false;
    let mut report = |p: mayfly_snapshotter::Progress| {
        if !begun {
            progress.begin("store snapshot", Some(p.total_bytes), Unit::Bytes);
            begun = true;
        }
        progress.advance(p.done_bytes);
    };
    let manifest = store.commit(snapshot, &mut report, cancel)?;
    if let Some(old) = replaced {
        // Sessions that have these files open keep them.
        manage::remove_files(layout, &old, &store.list()?);
    }
    Ok(manifest)
}

fn hash_of(file: &std::fs::File) -> std::io::Result<Digest> {
    use std::os::fd::AsRawFd;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?)?;
    Ok(Digest::from(hasher.finalize()))
}

fn check(cancel: &AtomicBool) -> Result<(), GoldenError> {
    if cancel.load(Ordering::Relaxed) { Err(GoldenError::Cancelled) } else { Ok(()) }
}

async fn cancelled(cancel: &AtomicBool) {
    while !cancel.load(Ordering::Relaxed) {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GoldenError> + Send + 'static,
) -> Result<T, GoldenError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Passes the progress of the boot artifacts on.
struct ImageProgress(Arc<dyn Progress>);

impl mayfly_golden_images::Progress for ImageProgress {
    fn started(&self, step: Step, total: Option<u64>) {
        let unit = if step == Step::Disk { Unit::Bytes } else { Unit::Items };
        self.0.begin(step.name(), total, unit);
    }

    fn advanced(&self, _: Step, done: u64, total: Option<u64>, what: &str) {
        self.0.total(total);
        self.0.advance(done);
        self.0.detail(what);
    }

    fn finished(&self, _: Step) {}
}
