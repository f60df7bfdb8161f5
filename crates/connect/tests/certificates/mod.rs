//! What tests of TLS share.
#![allow(clippy::unwrap_used, clippy::expect_used)] // clippy.toml knows tests by their attribute only

use std::path::PathBuf;
use std::process::Command;

/// Certificates and keys, in files that go with the test.
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    /// None yet.
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What a file is to a URL.
    pub fn url(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A self-signed certificate as PostgreSQL's documentation makes it (openssl lets it sign others):
    /// NAME.crt and NAME.key.
    pub fn own(&self, name: &str, subject: &str, extra: &[&str]) -> &Self {
        let (key, certificate) = (self.url(&format!("{name}.key")), self.url(&format!("{name}.crt")));
        let subject = format!("/CN={subject}");
        let mut arguments = vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
        arguments.extend(["-nodes", "-days", "30", "-subj", &subject, "-keyout", &key, "-out", &certificate]);
        arguments.extend(extra);
        openssl(&arguments);
        self
    }

    /// One that `authority` signed.
    pub fn signed(&self, name: &str, subject: &str, names: &str, authority: &str) -> &Self {
        let (key, certificate) =
            (self.url(&format!("{authority}.key")), self.url(&format!("{authority}.crt")));
        let names = format!("subjectAltName={names}");
        let extra = ["-CA", &certificate, "-CAkey", &key, "-addext", &names];
        self.own(name, subject, &[&extra[..], &["-addext", "basicConstraints=CA:FALSE"]].concat())
    }
}

/// Runs it.
pub fn openssl(arguments: &[&str]) {
    let made = Command::new("openssl").args(arguments).output().unwrap();
    assert!(made.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&made.stderr));
}
