//! The .deb and the .rpm of each processor, made by cargo-deb and cargo-generate-rpm. imds-observer/Cargo.toml lists their contents.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use xshell::{Shell, cmd};

use super::{Release, archive, inventory, pages};
use crate::kernels::Arch;
use crate::setup::which;

/// Directory in which imds-observer/Cargo.toml expects generated files.
const STAGE: &str = "target/package-files";
/// The same value as in imds-observer/Cargo.toml.
const MAINTAINER: &str = "imds-observer maintainers <imds-observer@users.noreply.github.com>";
/// Path of the program in the tarball's unit, and in packages. The tarball's unit starts a program that an administrator has installed.
const UNIT_PATHS: (&str, &str) = ("/usr/local/bin/imds-observer", "/usr/bin/imds-observer");

pub(super) fn deb(release: &Release, arch: Arch) -> PathBuf {
    let name = format!("imds-observer_{}-1_{}.deb", release.version, arch.debian());
    release.directory.join(name)
}

pub(super) fn rpm(release: &Release, arch: Arch) -> PathBuf {
    let name = format!("imds-observer-{}-1.{}.rpm", release.version, arch.name());
    release.directory.join(name)
}

pub(super) fn make(sh: &Shell, release: &Release, source: &Path) -> anyhow::Result<()> {
    stage(sh, release, source)?;
    for arch in &release.arches {
        let (target, deb, rpm) = (arch.target(), deb(release, *arch), rpm(release, *arch));
        cmd!(
            sh,
            "cargo deb --quiet --locked --package imds-observer --no-build --no-strip --no-dbgsym --target {target} --output {deb}"
        )
        .run()?;
        let epoch = release.epoch.to_string();
        cmd!(
            sh,
            "cargo generate-rpm --package imds-observer --target {target} --auto-req disabled --source-date {epoch} --output {rpm}"
        )
        .run()?;
    }
    Ok(())
}

fn stage(sh: &Shell, release: &Release, source: &Path) -> anyhow::Result<()> {
    let stage = source.join(STAGE);
    sh.remove_path(&stage)?;
    sh.create_dir(&stage)?;
    let unit = sh.read_file(source.join("deploy/systemd/imds-observer.service"))?;
    ensure!(unit.contains(UNIT_PATHS.0), "the unit starts {}", UNIT_PATHS.0);
    sh.write_file(
        stage.join("imds-observer.service"),
        unit.replace(UNIT_PATHS.0, UNIT_PATHS.1),
    )?;
    let licences = release.directory.join("programs").join(inventory::LICENCES);
    sh.copy_file(licences, &stage)?;
    // Copies with a new time: cargo-generate-rpm keeps the time of a file that is older than the release.
    for name in [
        "CHANGELOG.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "deploy/imds-observer.toml",
        "deploy/prometheus/alerts.yml",
    ] {
        sh.copy_file(source.join(name), &stage)?;
    }
    sh.write_file(stage.join("changelog.debian"), debian_changelog(release)?)?;
    sh.create_dir(stage.join("man-compressed"))?;
    for (name, contents) in pages::make(sh, release)? {
        // cargo-deb compresses manual pages itself.
        if let Some(page) = name.strip_prefix("man/") {
            let compressed = archive::gzip(&contents)?;
            sh.write_file(stage.join("man-compressed").join(format!("{page}.gz")), compressed)?;
        }
        let path = stage.join(name);
        sh.create_dir(path.parent().context("a page has a directory")?)?;
        sh.write_file(path, contents)?;
    }
    ensure!(
        sh.path_exists(stage.join("man")),
        "packages need manual pages, which a program for this machine's processor writes: name it too (--arch)"
    );
    Ok(())
}

/// The changelog in the form that Debian's tools read. The changes themselves are in CHANGELOG.md, which is installed beside it.
fn debian_changelog(release: &Release) -> anyhow::Result<String> {
    let time = jiff::Timestamp::from_second(i64::try_from(release.epoch)?)
        .context("SOURCE_DATE_EPOCH is beyond what dates can be")?
        .to_zoned(jiff::tz::TimeZone::UTC);
    Ok(format!(
        "imds-observer ({0}-1) unstable; urgency=medium\n\n  * Release {0}: the changes are in CHANGELOG.md.\n\n -- {MAINTAINER}  {1}\n",
        release.version,
        time.strftime("%a, %d %b %Y %H:%M:%S %z")
    ))
}

/// Checks the packages with the distributions' own programs (lintian, rpm, rpmlint), and with an installation in a Debian guest.
pub(super) fn check(sh: &Shell, release: &Release) -> anyhow::Result<()> {
    for program in ["lintian", "rpm", "rpmlint", "dpkg-deb"] {
        ensure!(
            which(sh, program),
            "{program} isn't there (cargo xtask setup --for packages)"
        );
    }
    for arch in &release.arches {
        let (deb, rpm) = (deb(release, *arch), rpm(release, *arch));
        // The program is linked statically on purpose, and is still position-independent.
        cmd!(
            sh,
            "lintian --fail-on error --suppress-tags statically-linked-binary,shared-library-lacks-prerequisites {deb}"
        )
        .run()?;
        cmd!(sh, "rpm --checksig --nosignature {rpm}").run()?;
        cmd!(sh, "rpmlint --config deploy/rpmlint.toml {rpm}").run()?;
        same_files(sh, &deb, &rpm)?;
    }
    Ok(())
}

/// Checks that both packages contain the same program, unit and configuration. rpm verifies each file with the package's digests.
fn same_files(sh: &Shell, deb: &Path, rpm: &Path) -> anyhow::Result<()> {
    let directory = sh.create_temp_dir()?;
    let [from_deb, from_rpm] = ["deb", "rpm"].map(|kind| directory.path().join(kind));
    sh.create_dir(&from_rpm)?;
    cmd!(sh, "dpkg-deb --extract {deb} {from_deb}").run()?;
    // Installs into an empty root. rpm2cpio doesn't work: it requires the archive's size, which cargo-generate-rpm doesn't write.
    let here = &["--root", &from_rpm.display().to_string(), "--dbpath", "/var/lib/rpm"];
    cmd!(
        sh,
        "rpm {here...} --install --nodeps --noscripts --ignorearch --ignoreos {rpm}"
    )
    .run()?;
    cmd!(sh, "rpm {here...} --verify --nodeps imds-observer").run()?;
    for name in [
        "usr/bin/imds-observer",
        "etc/imds-observer.toml",
        "usr/lib/systemd/system/imds-observer.service",
    ] {
        let [a, b] = [&from_deb, &from_rpm].map(|root| root.join(name));
        let (a, b) = (std::fs::read(&a), std::fs::read(&b));
        let (a, b) = (
            a.with_context(|| format!("{name} of the .deb"))?,
            b.with_context(|| format!("{name} of the .rpm"))?,
        );
        ensure!(a == b, "{name} isn't the same in both packages");
    }
    Ok(())
}
