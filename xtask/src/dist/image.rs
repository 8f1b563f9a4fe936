//! The container image, FROM scratch, for all processors, as an OCI archive.
//!
//! The archive is written here and not by buildah, which needs root and a store, and stores the time of the build.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::archive::{Archive, gzip, sha256};
use super::{Release, inventory, program};
use crate::kernels::Arch;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(super) fn make(release: &Release, source: &Path) -> anyhow::Result<()> {
    let mut archive = Archive::new(release.epoch);
    archive.file("oci-layout", &json(&json!({"imageLayoutVersion": "1.0.0"}))?)?;
    let mut blobs = Blobs(&mut archive);
    let mut manifests = Vec::new();
    for arch in &release.arches {
        manifests.push(manifest(&mut blobs, release, source, *arch)?);
    }
    // One name for all processors. A registry's client selects the manifest for its processor.
    let mut named = blobs.put(INDEX, &json(&index(&manifests))?)?;
    named["annotations"] = json!({"org.opencontainers.image.ref.name": format!("imds-observer:{}", release.version)});
    archive.file("index.json", &json(&index(&[named]))?)?;
    fs::write(release.file("-image.tar"), archive.finish()?)?;
    Ok(())
}

fn index(manifests: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
}

fn manifest(blobs: &mut Blobs<'_>, release: &Release, source: &Path, arch: Arch) -> anyhow::Result<Value> {
    let layer = layer(release, source, arch)?;
    let created = jiff::Timestamp::from_second(i64::try_from(release.epoch)?)
        .context("SOURCE_DATE_EPOCH is beyond what dates can be")?
        .to_string();
    let config = json!({
        "created": created,
        "architecture": arch.debian(),
        "os": "linux",
        "config": {
            "User": "0:0",
            "Entrypoint": ["/imds-observer"],
            "Cmd": ["--help"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "imds-observer",
                "org.opencontainers.image.description": "Traces EC2 instance metadata (IMDS) traffic and diagnoses failures",
                "org.opencontainers.image.version": release.version,
                "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
        "history": [{"created": created, "created_by": "cargo xtask dist"}],
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blobs.put(CONFIG, &json(&config)?)?,
        "layers": [blobs.put(LAYER, &gzip(&layer)?)?],
    });
    let mut descriptor = blobs.put(MANIFEST, &json(&manifest)?)?;
    // Debian and Go have the same names for both processors; the format requires Go's.
    descriptor["platform"] = json!({"architecture": arch.debian(), "os": "linux"});
    Ok(descriptor)
}

/// Content of the image: the program and the licenses.
fn layer(release: &Release, source: &Path, arch: Arch) -> anyhow::Result<Vec<u8>> {
    let mut layer = Archive::new(release.epoch);
    layer.program("imds-observer", &fs::read(program::path(release, arch))?)?;
    layer.directory("licenses")?;
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        layer.file(&format!("licenses/{name}"), &fs::read(source.join(name))?)?;
    }
    let licences = release.directory.join("programs").join(inventory::LICENCES);
    layer.file(&format!("licenses/{}", inventory::LICENCES), &fs::read(licences)?)?;
    layer.finish()
}

fn json(value: &Value) -> anyhow::Result<Vec<u8>> {
    // The keys of a `Value` are sorted, so the bytes are reproducible.
    Ok(serde_json::to_vec(value)?)
}

/// Blobs of the image, by their hash.
struct Blobs<'a>(&'a mut Archive);

impl Blobs<'_> {
    /// Stores a blob and returns the descriptor that refers to it.
    fn put(&mut self, kind: &str, bytes: &[u8]) -> anyhow::Result<Value> {
        let digest = sha256(bytes);
        self.0.file(&format!("blobs/sha256/{digest}"), bytes)?;
        Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    }
}
