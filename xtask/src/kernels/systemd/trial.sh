# What an administrator does with the unit, on a host that is a guest of its own. Lines with @@ are read by xtask/src/kernels/systemd.rs.
set -u
records=/var/log/imds-observer/records.ndjson
endpoint=http://169.254.169.254

tell() { echo "@@ $*"; }
show() { systemctl show imds-observer --value --property "$1"; }
# States as `systemctl show` has them.
tell_states() {
    local when=$1 property
    shift
    for property; do tell "$when.$property" "$(show "$property")"; done
}
log() { journalctl --quiet --no-pager --output cat --unit imds-observer; }
# Waits until a command succeeds.
until_it() {
    local what=$1 deadline=$((SECONDS + 90))
    shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS > deadline)); then
            tell failed "$what"
            systemctl status --no-pager --full imds-observer
            log
            tail -3 $records
            exit 1
        fi
        sleep 0.1
    done
}
# A request of a unit of its own.
ask() { systemd-run --quiet --wait --unit client curl --silent --fail --output /dev/null --max-time 10 "$endpoint/latest/meta-data/instance-id?$1"; }
recorded() { grep --fixed-strings --quiet "instance-id?$1" $records; }
said() { (($(log | grep --fixed-strings --count "$1") >= $2)); }

# The metadata service behind the host's one uplink.
for module in $(grep --extended-regexp '/(veth|sch_ingress|cls_bpf)[.]ko' /guest/modules); do insmod "$module"; done
ip link set lo up
ip netns add imds
ip link add eth0 type veth peer name up0 netns imds
ip address add 10.77.0.5/24 dev eth0
ip link set eth0 up
ip -n imds address add 10.77.0.1/24 dev up0
ip -n imds address add 169.254.169.254/32 dev lo
ip -n imds link set lo up
ip -n imds link set up0 up
ip route add 169.254.169.254/32 via 10.77.0.1
systemd-run --quiet --unit imds --property NetworkNamespacePath=/run/netns/imds /guest/imds-observer-lab server --listen 169.254.169.254:80
until_it "no answer from the metadata service" ask nobody-looks

# docs/install.md, "Run it as a service".
if [ -e /guest/imds-observer.deb ]; then
    dpkg --install /guest/imds-observer.deb || tell failed "dpkg --install"
    # A package of a service that attaches eBPF programs starts nothing by itself.
    [ "$(systemctl is-active imds-observer)" = inactive ] || tell failed "the package started the service"
    [ "$(command -v imds-observer)" = /usr/bin/imds-observer ] || tell failed "the package's program is not in PATH"
    # In dpkg's list: this root file system leaves the files out.
    dpkg --listfiles imds-observer | grep -q '^/usr/share/man/man1/imds-observer.1.gz$' || tell failed "the package has no manual page"
    tell installed package
else
    install -m 755 /guest/imds-observer /usr/local/bin/
    install -m 644 /guest/imds-observer.toml /etc/
    install -m 644 /guest/imds-observer.service /etc/systemd/system/
    systemctl daemon-reload
    tell installed by hand
fi
tell version "$(systemctl --version | head -1)"
systemctl enable --quiet --now imds-observer
tell start.status $?
tell_states start ActiveState SubState Type NRestarts StatusText WatchdogUSec
pid=$(show MainPID)
beaten=$(show WatchdogTimestampMonotonic)
for field in CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp; do
    tell "process.$field" "$(sed --quiet "s/^$field:\s*//p" "/proc/$pid/status")"
done
tell exposure "$(systemd-analyze security --no-pager imds-observer | tail -1)"
tell ready "$(curl --silent --max-time 5 --output /dev/null --write-out '%{http_code}' http://127.0.0.1:9469/readyz)"
tell record.start "$(head -1 $records)"
ask one
until_it "the exchange is not recorded" recorded one
tell record.exchange "$(grep --fixed-strings 'instance-id?one' $records | head -1)"

# A broken file changes nothing; two good ones do.
echo '[filter' >/etc/imds-observer.toml
systemctl reload imds-observer
tell reload.status $?
until_it "a broken file is not told" said 'the old configuration stays in force' 1
ask old
until_it "the old configuration is not in force" recorded old
printf '[filter]\ncomm = ["nobody"]\n[limits]\nqueue = 5000\n' >/etc/imds-observer.toml
systemctl reload imds-observer
until_it "the first reload is not logged" said 'configuration reloaded' 1
ask filtered
printf '[filter]\ncomm = ["curl"]\n[limits]\nqueue = 6000\n' >/etc/imds-observer.toml
systemctl reload imds-observer
until_it "the second reload is not logged" said 'configuration reloaded' 2
ask seen
until_it "the new configuration is not in force" recorded seen
tell filtered "$(grep --fixed-strings --count 'instance-id?filtered' $records)"

# As it was shipped, half of 30 s.
beats() { (($(show WatchdogTimestampMonotonic) > beaten)); }
until_it "no sign of life" beats
tell_states running ActiveState SubState NRestarts
tell running.same "$([[ $(show MainPID) == "$pid" ]] && echo yes)"
systemctl stop imds-observer
tell stop.status $?
tell_states stop ActiveState SubState Result ExecMainCode ExecMainStatus NRestarts
tell record.summary "$(grep '"record":"summary"' $records | tail -1)"
tell record.loss "$(grep '"record":"loss"' $records | tail -1)"

# One that is stuck is started again; sooner than as shipped, to wait less.
mkdir /run/systemd/system/imds-observer.service.d
printf '[Service]\nWatchdogSec=5s\nRestartSec=100ms\n' >/run/systemd/system/imds-observer.service.d/soon.conf
systemctl daemon-reload
systemctl start imds-observer
kill -STOP "$(show MainPID)"
again() { (($(show NRestarts) > 0)) && systemctl --quiet is-active imds-observer; }
until_it "a stuck observer is not started again" again
tell stuck.said "$(said 'Watchdog timeout' 1 && echo yes)"
systemctl stop imds-observer
tell end
