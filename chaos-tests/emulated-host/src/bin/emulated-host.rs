//! scratch
use mayfly_emulated_host::*;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
fn main() {
    static CANCEL: AtomicBool = AtomicBool::new(false);
    let platform: distribution::Platform = std::env::args().nth(1).unwrap().parse().unwrap();
    let hosts = std::path::PathBuf::from("/root/.cache/mayfly/hosts");
    let images = image::Images::new(&hosts, &CANCEL);
    let image = images.get(platform.distribution).unwrap_or_else(|e| panic!("{e}"));
    eprintln!("{:?}", image.disk);
    let work = std::path::PathBuf::from("/tmp/eh/run");
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).unwrap();
    let settings = host::Settings {
        boot: image.boot_files(platform).unwrap(),
        image: image.disk.clone(),
        payload: None,
        work: work.clone(),
        memory_mib: 4096,
        cpus: 2,
        cache: machine::DiskCache::Unsafe,
        scale: 1.0,
        extra: vec![],
    };
    let mut host = host::Host::new(settings, &CANCEL);
    host.boot(None).unwrap_or_else(|e| panic!("{e}"));
    let mut t = output::Transcript::create(&work.join("t"), true).unwrap();
    for line in std::io::stdin().lines() {
        let o = host.run(&line.unwrap(), Duration::from_secs(60), &mut t);
        if let Err(e) = o {
            eprintln!("{e}");
        }
    }
    host.shut_down().unwrap_or_else(|e| panic!("{e}"));
}
