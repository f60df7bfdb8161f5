//! Small disks to fill.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of its own in memory; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of that many MiB. `None`, and a word about it, where this user may not, unless
    /// `HEADWATER_DEMAND_MOUNT` is 1: then that is a failure.
    pub fn mount(at: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir_all(at).expect("the directory can be made");
        match mount(at, &format!("size={mib}m")) {
            Ok(()) => Some(Self(at.to_owned())),
            Err(refused) if std::env::var_os("HEADWATER_DEMAND_MOUNT").is_some_and(|value| value == "1") => {
                panic!("{refused}; with HEADWATER_DEMAND_MOUNT=0 full disks are not tested")
            }
            Err(refused) => {
                eprintln!("not tested: {refused}");
                None
            }
        }
    }

    /// Gives it another size.
    pub fn resize(&self, mib: u32) {
        mount(&self.0, &format!("remount,size={mib}m")).expect("a mounted disk can be resized");
    }

    /// Writes a file until there is no room for even a page.
    pub fn fill(&self) -> Filler {
        use std::io::Write;
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).expect("the filler can be made");
        while file.write_all(&[0; 4096]).is_ok() {}
        Filler(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open keeps it until it ends.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// What fills a disk, until it is dropped.
#[derive(Debug)]
pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn mount(at: &Path, options: &str) -> Result<(), String> {
    let outcome = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
    match outcome {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("mount: {error}")),
    }
}
