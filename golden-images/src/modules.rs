//! Kernel modules: which files a set of modules needs, in load order.
//!
//! Source: `modules.dep(5)`; `modules.builtin` and `modules.softdep` as written by `depmod(8)`.

use std::collections::{HashMap, HashSet};

/// Modules without which the guest does not reach its root disk or the host: built in or loaded,
/// but never missing.
pub(crate) const BOOT_MODULES: [&str; 6] =
    ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "virtio_console", "ext4"];

/// Modules that dockerd, its firewall rules and its containers use. Loading them early, already
/// decompressed, spares the guest dozens of `modprobe` runs. A kernel that lacks one is still fine.
pub(crate) const DOCKER_MODULES: [&str; 17] = [
    "overlay",
    "bridge",
    "br_netfilter",
    "veth",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "nf_nat",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "xfrm_user",
    "xt_MASQUERADE",
    "xt_addrtype",
    "xt_conntrack",
    "xt_nat",
    "xt_tcpudp",
    "xt_mark",
];

/// Deepest chain of dependencies that is followed; real kernels have fewer than ten levels.
const MAX_DEPTH: usize = 64;

/// Reason why a module could not be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModulesError {
    /// A module is neither a file nor built in.
    #[error(
        "the kernel {release} has no module \"{module}\", which booting needs: name another kernel package in [debian] kernel"
    )]
    Missing {
        /// Kernel release.
        release: String,
        /// Module name.
        module: String,
    },
    /// The kernel package has no module directory.
    #[error("kernel package \"{package}\" has no module directory with a modules.dep")]
    NoDirectory {
        /// Package name.
        package: String,
    },
    /// A module file cannot be decompressed.
    #[error("module {path} cannot be decompressed: {cause}")]
    Decompress {
        /// Path in the module directory.
        path: String,
        /// Cause of the failure.
        cause: std::io::Error,
    },
    /// The dependencies of a module do not end.
    #[error("the dependencies of module \"{0}\" are nested too deeply: modules.dep is damaged")]
    TooDeep(String),
}

/// The modules of one kernel: files with their dependencies, built-in ones, and soft dependencies.
#[derive(Debug, Default)]
pub struct ModuleIndex {
    /// Module name to (path in the module directory, paths of its direct and indirect
    /// dependencies).
    files: HashMap<String, (String, Vec<String>)>,
    builtin: HashSet<String>,
    /// Module name to the modules that should be loaded before it.
    soft: HashMap<String, Vec<String>>,
}

/// The name of a module by its file path: base name, no suffix, `-` as `_` (kmod's rule).
fn module_name(path: &str) -> String {
    let base = path.rsplit('/').next().unwrap_or(path);
    base.split('.').next().unwrap_or(base).replace('-', "_")
}

impl ModuleIndex {
    /// Parses the text of `modules.dep`, `modules.builtin` and `modules.softdep`. Lines that make
    /// no sense are skipped.
    pub fn parse(dep: &str, builtin: &str, softdep: &str) -> Self {
        let mut index = ModuleIndex::default();
        for line in dep.lines() {
            let Some((path, needs)) = line.split_once(':') else {
                continue;
            };
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            index.files.insert(module_name(path), (path.trim().to_owned(), needs));
        }
        index.builtin = builtin.lines().filter(|l| !l.is_empty()).map(module_name).collect();
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(module) = words.next() else { continue };
            let before = words
                .skip_while(|w| *w != "pre:")
                .skip(1)
                .take_while(|w| *w != "post:")
                .map(|w| w.replace('-', "_"));
            index.soft.entry(module.replace('-', "_")).or_default().extend(before);
        }
        index
    }

    /// Returns whether `name` is compiled into the kernel.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(name)
    }

    /// Returns whether `name` is a module file.
    pub fn has_file(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Returns the module files to load for `names`, dependencies before their users, each once.
    /// Names in `optional` may be missing; names in `required` must be a file or built in.
    ///
    /// # Errors
    /// [`ModulesError::Missing`] for a required module, [`ModulesError::TooDeep`] when the
    /// dependencies do not end.
    pub fn load_order(
        &self,
        release: &str,
        required: &[&str],
        optional: &[&str],
    ) -> Result<Vec<String>, ModulesError> {
        let mut order = Vec::new();
        for name in required {
            if !self.has_file(name) && !self.is_builtin(name) {
                return Err(ModulesError::Missing {
                    release: release.to_owned(),
                    module: (*name).to_owned(),
                });
            }
        }
        for name in required.iter().chain(optional) {
            self.visit(name, &mut order, 0)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, order: &mut Vec<String>, depth: usize) -> Result<(), ModulesError> {
        if depth > MAX_DEPTH {
            return Err(ModulesError::TooDeep(name.to_owned()));
        }
        let Some((path, needs)) = self.files.get(name) else {
            return Ok(());
        };
        if order.contains(path) {
            return Ok(());
        }
        for soft in self.soft.get(name).into_iter().flatten() {
            self.visit(soft, order, depth + 1)?;
        }
        // depmod lists the closure with the nearest dependency first, so the reverse loads the
        // farthest first.
        for need in needs.iter().rev() {
            self.visit(&module_name(need), order, depth + 1)?;
        }
        if !order.contains(path) {
            order.push(path.clone());
        }
        Ok(())
    }
}

/// The `.ko` bytes of a module file that may be compressed (`.ko.xz`, `.ko.zst`, `.ko.gz`).
pub(crate) fn decompress(path: &str, bytes: Vec<u8>) -> Result<Vec<u8>, ModulesError> {
    use std::io::Read as _;
    /// Largest module that is accepted.
    const MAX_MODULE: u64 = 256 << 20;
    let mut out = Vec::new();
    let result = if path.ends_with(".xz") {
        liblzma::read::XzDecoder::new(&bytes[..]).take(MAX_MODULE).read_to_end(&mut out)
    } else if path.ends_with(".zst") {
        zstd::stream::read::Decoder::new(&bytes[..])
            .and_then(|d| d.take(MAX_MODULE).read_to_end(&mut out))
    } else if path.ends_with(".gz") {
        flate2::read::GzDecoder::new(&bytes[..]).take(MAX_MODULE).read_to_end(&mut out)
    } else {
        return Ok(bytes);
    };
    result.map_err(|cause| ModulesError::Decompress { path: path.to_owned(), cause })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\n\
        kernel/fs/jbd2/jbd2.ko.xz:\nkernel/lib/crc16.ko.xz:\nkernel/crypto/crc32c_generic.ko.xz:\n\
        kernel/drivers/virtio/virtio-mmio.ko.xz: kernel/drivers/virtio/virtio.ko.xz\nkernel/drivers/virtio/virtio.ko.xz:\n";

    #[test]
    fn dependencies_and_soft_dependencies_come_first() {
        let index = ModuleIndex::parse(
            DEP,
            "kernel/drivers/char/virtio_console.ko\n",
            "softdep ext4 pre: crc32c-generic\n",
        );
        let order = index
            .load_order("6.12", &["ext4", "virtio_mmio", "virtio_console"], &["absent"])
            .expect("all there");
        let names: Vec<_> = order.iter().map(|p| module_name(p)).collect();
        assert_eq!(names, ["crc32c_generic", "crc16", "jbd2", "ext4", "virtio", "virtio_mmio"]);
    }

    #[test]
    fn a_missing_required_module_is_named() {
        let error = ModuleIndex::parse(DEP, "", "")
            .load_order("6.12", &["virtio_blk"], &[])
            .expect_err("absent");
        assert!(error.to_string().contains("\"virtio_blk\""), "{error}");
    }

    #[test]
    fn a_dependency_cycle_ends_in_an_error() {
        let index = ModuleIndex::parse("a.ko: b.ko\nb.ko: a.ko\n", "", "");
        assert!(matches!(index.load_order("x", &["a"], &[]), Err(ModulesError::TooDeep(_))));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(dep in ".{0,400}", builtin in ".{0,100}", soft in "(softdep [a-c] pre: [a-c]\n){0,5}") {
            let index = ModuleIndex::parse(&dep, &builtin, &soft);
            let _ = index.load_order("x", &[], &["a", "b", "c"]);
        }

        #[test]
        fn every_dependency_precedes_its_user(edges in proptest::collection::vec((0usize..12, 0usize..12), 0..40)) {
            // Edges only from larger to smaller numbers: no cycle.
            let mut needs: Vec<Vec<usize>> = vec![Vec::new(); 12];
            for (a, b) in edges { if a > b && !needs[a].contains(&b) { needs[a].push(b); } }
            let dep: String = needs.iter().enumerate()
                .map(|(n, list)| format!("m{n}.ko: {}\n", list.iter().map(|d| format!("m{d}.ko ")).collect::<String>())).collect();
            let names: Vec<String> = (0..12).map(|n| format!("m{n}")).collect();
            let all: Vec<&str> = names.iter().map(String::as_str).collect();
            let order = ModuleIndex::parse(&dep, "", "").load_order("x", &all, &[]).expect("no cycle");
            prop_assert_eq!(order.len(), 12);
            for (n, list) in needs.iter().enumerate() {
                let at = |m: usize| order.iter().position(|p| *p == format!("m{m}.ko"));
                for d in list { prop_assert!(at(*d) < at(n)); }
            }
        }
    }
}
