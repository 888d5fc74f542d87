//! Builds the boot artifacts of a recipe and prints where they are:
//! `build CACHE_DIR AGENT [RECIPE]`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use mayfly_golden_images::{Builder, KeyedSeal, Progress, Recipe, Step};

/// Prints the start and end of each step with the time since the beginning.
struct Print(Instant);

impl Progress for Print {
    fn started(&self, step: Step, total: Option<u64>) {
        eprintln!(
            "{:6.1} s  {} started (total {total:?})",
            self.0.elapsed().as_secs_f32(),
            step.name()
        );
    }
    fn advanced(&self, _: Step, _: u64, _: Option<u64>, _: &str) {}
    fn finished(&self, step: Step) {
        eprintln!("{:6.1} s  {} finished", self.0.elapsed().as_secs_f32(), step.name());
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(cache), Some(agent)) = (args.first(), args.get(1)) else {
        return Err("usage: build CACHE_DIR AGENT [RECIPE]".into());
    };
    let recipe = Recipe::load(args.get(2).map_or("default", String::as_str))?;
    let begun = Instant::now();
    // The next run is to find what this one built, and there is nobody to keep it from.
    let seal = Arc::new(KeyedSeal([0; 32]));
    let built =
        Builder::new(cache, agent, seal).build(&recipe, &Print(begun), &AtomicBool::new(false))?;
    eprintln!(
        "{:6.1} s  complete, {} packages",
        begun.elapsed().as_secs_f32(),
        built.packages.len()
    );
    println!(
        "kernel={}\ninitramfs={}\ndisk={}",
        built.kernel.path.display(),
        built.initramfs.path.display(),
        built.base_disk.path.display()
    );
    println!("cmdline={}", built.cmdline);
    for command in &built.warm_commands {
        println!("warm={command:?}");
    }
    Ok(())
}
