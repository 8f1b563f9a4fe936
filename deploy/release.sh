#!/bin/sh
# What the release workflow asks of the sources.
#
#   release.sh version TAG     version=..., if the tag, the workspace, the chart and the changelog agree on it
#   release.sh notes VERSION   the changelog's section of this version
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "release.sh: $*" >&2
    exit 1
}

version() {
    wanted=${1#v}
    [ "v$wanted" = "$1" ] || fail "the tag $1 doesn't begin with v"
    workspace=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
    chart=$(sed -n 's/^version: //p' deploy/helm/imds-observer/Chart.yaml)
    app=$(sed -n 's/^appVersion: //p' deploy/helm/imds-observer/Chart.yaml)
    [ "$workspace" = "$wanted" ] || fail "the tag names $wanted, Cargo.toml $workspace"
    [ "$chart" = "$wanted" ] || fail "the tag names $wanted, the chart's version is $chart"
    [ "$app" = "$wanted" ] || fail "the tag names $wanted, the chart's appVersion is $app"
    [ -n "$(notes "$wanted")" ] || fail "CHANGELOG.md has nothing on $wanted"
    echo "version=$wanted"
}

# From its heading to the next one.
notes() {
    awk -v heading="## $1" '
        /^## / { inside = ($0 == heading || index($0, heading " ") == 1); next }
        inside { print }
    ' CHANGELOG.md
}

case ${1-} in
    version) [ $# = 2 ] || fail "usage: release.sh version TAG"; version "$2" ;;
    notes) [ $# = 2 ] || fail "usage: release.sh notes VERSION"; notes "$2" ;;
    *) fail "usage: release.sh version TAG | notes VERSION" ;;
esac
