#!/bin/sh
# NVIDIA's container toolkit on a PC, and its runtime in Docker.
#   toolkit.sh add FOLDER REPOSITORY VERSION   installs it if missing, and adds it to Docker
#   toolkit.sh forget FOLDER                   removes it from Docker: for purge, which then removes the packages
# Nothing is replaced; additions are recorded in FOLDER. No container is disturbed: Docker reloads its
# settings, and is restarted only if that is not enough and no container runs.
# `add` prints its changes, and ends with 0: Docker has the runtime; 3: it needs a restart of Docker;
# 4: the toolkit cannot be installed; 5: it cannot be added to Docker. The reason is on stderr. `forget` ends with 3 if
# something else uses it.
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 # else needrestart restarts services
verb=$1 added=$2
shift 2
packages="nvidia-container-toolkit nvidia-container-toolkit-base libnvidia-container-tools libnvidia-container1"
settings=$(readlink -m /etc/docker/daemon.json) # a link stays a link
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

said() { # the most informative line of recorded output
  grep -m 1 -e '^E:' -e '^Error' "$work/words" || tail -n 1 "$work/words"
}

cannot() { # status, reason
  echo "$2" >&2
  exit "$1"
}

knows() { docker info --format '{{json .Runtimes}}' 2>/dev/null | grep -q '"nvidia":'; }
knows_not() { ! knows; }

wait_until() { # a condition: Docker reads its settings after the reload returns
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    if "$@"; then return 0; fi
    sleep 1
  done
  return 1
}

reload() { # and wait for a condition
  systemctl reload docker.service >&2 && wait_until "$@"
}

# -- Docker's settings

# has FILE | merged BEFORE AFTER (all of BEFORE is in AFTER, and nothing became the default)
# without FILE | empty FILE (the same, but with "runtimes": a reload ignores missing keys)
edit() {
  python3 - "$@" <<'END'
import json
import sys


def read(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    found = json.loads(text) if text.strip() else {}
    if not isinstance(found, dict) or not isinstance(found.get("runtimes", {}), dict):
        raise ValueError("not what Docker expects")
    return found


def without(found):
    runtimes = {name: each for name, each in found.get("runtimes", {}).items() if name != "nvidia"}
    return {**found, "runtimes": runtimes}


verb, *paths = sys.argv[1:]
try:
    first, *others = [read(path) for path in paths]
except (OSError, ValueError) as error:
    sys.exit(f"{paths[0]}: {error}")
if verb == "has":
    sys.exit(0 if "nvidia" in first.get("runtimes", {}) else 10)
if verb == "merged":
    kept = {key: each for key, each in others[0].items() if key in first or key == "default-runtime"}
    if without(kept)["runtimes"] != without(first)["runtimes"]:
        sys.exit("another runtime changed")
    if {**kept, "runtimes": 0} != {**first, "runtimes": 0} or "nvidia" not in others[0].get("runtimes", {}):
        sys.exit("more would change than the runtime nvidia")
    sys.exit()
left = without(first)
if verb == "without" and not left["runtimes"]:
    del left["runtimes"]
print(json.dumps(left, indent=4))
END
}

put() { # replaces the settings' content, keeping owner and mode
  mkdir -p "$(dirname "$settings")"
  if [ -e "$settings" ]; then
    cp -a "$settings" "$settings.minga"
  else
    : >"$settings.minga"
    chmod 0644 "$settings.minga"
  fi
  if ! { cat "$1" >"$settings.minga" && mv -f "$settings.minga" "$settings"; }; then
    rm -f "$settings.minga"
    cannot 5 "$settings cannot be written"
  fi
}

put_back() { # the content before
  if [ -e "$added/daemon.json" ]; then
    put "$added/daemon.json"
  else
    rm -f "$settings"
    if [ -s "$added/daemon.none" ]; then rmdir "$(dirname "$settings")" 2>/dev/null || true; fi
  fi
}

merge() {
  if [ -e "$settings" ]; then cp "$settings" "$work/before"; else : >"$work/before"; fi
  if [ -s "$work/before" ]; then cp "$work/before" "$work/after"; else echo '{}' >"$work/after"; fi
  nvidia-ctk runtime configure --runtime=docker --config="$work/after" >"$work/words" 2>&1 ||
    cannot 5 "nvidia-ctk: $(said)"
  reason=$(edit merged "$work/before" "$work/after" 2>&1) || cannot 5 "$settings would become invalid: $reason"
  if dockerd --help 2>/dev/null | grep -q -e --validate; then # since Docker 23
    reason=$(dockerd --validate --config-file="$work/after" 2>&1) || cannot 5 "$settings would not do: $reason"
  fi
  rm -f "$added/daemon.json" "$added/daemon.none"
  if [ -e "$settings" ]; then
    cp -a "$settings" "$added/daemon.json"
  else
    if [ -d "$(dirname "$settings")" ]; then : >"$added/daemon.none"; else echo folder >"$added/daemon.none"; fi
  fi
  cp "$work/after" "$added/daemon.left"
  put "$work/after"
  echo "added the runtime nvidia to $settings"
}

tell_docker() {
  systemctl is-active --quiet docker.service || cannot 5 "its engine is no docker.service of systemd's"
  pid=$(systemctl show --property MainPID --value docker.service)
  if tr '\0' '\n' <"/proc/$pid/cmdline" | grep -q -e '^--config-file'; then
    cannot 5 "its dockerd reads another file than $settings"
  fi
  reason=$(edit has "$settings" 2>&1) && status=0 || status=$?
  if [ -e "$settings" ] && [ "$status" -eq 1 ]; then cannot 5 "$reason"; fi
  if [ "$status" -ne 0 ]; then merge; fi # else it is merged already, and Docker has not read it yet
  if reload knows; then return; fi
  if [ -n "$(docker container ls -q || echo unknown)" ]; then
    cannot 3 "a reload did not do"
  fi
  if ! systemctl restart docker.service >&2; then
    if [ -e "$added/daemon.left" ] && cmp -s "$settings" "$added/daemon.left"; then
      put_back
      rm -f "$added"/daemon.*
    fi
    systemctl reset-failed docker.service || true
    systemctl restart docker.service >&2 || true
    cannot 5 "Docker did not start with it; $settings is as before"
  fi
  wait_until knows || cannot 5 "Docker does not say that it has the runtime nvidia"
}

# -- packages

if command -v apt-get >/dev/null; then
  source=/etc/apt/sources.list.d/nvidia-container-toolkit.list # names as in NVIDIA's instructions: a user who follows
  key=/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg # them later has no duplicate source
  limits="-o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o Acquire::Retries=1"
  list() { dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\n' | sed -n 's/^ii *//p'; }
  known() { grep -rhs -v '^ *#' /etc/apt/sources.list /etc/apt/sources.list.d | grep -qF "$1/"; }
  add() { apt-get -qq -y --no-remove --no-install-recommends -o DPkg::Lock::Timeout=300 install "$@"; }
  describe() { # the source; its key is fetched through apt's proxy, and apt needs it without ASCII armour
    # shellcheck disable=SC2086 # one word per option
    /usr/lib/apt/apt-helper $limits download-file "$1/gpgkey" "$work/armoured" || return 1
    python3 - "$work/armoured" >"$work/key" <<'END' || return 1
import base64
import re
import sys

with open(sys.argv[1], encoding="ascii") as file:
    text = file.read().replace("\r", "")
blocks = re.findall("KEY BLOCK-----\n(?:.*: .*\n)*\n(.*?)\n(?:=.*\n)?-----END", text, re.S)
sys.stdout.buffer.write(b"".join(map(base64.b64decode, blocks)))
sys.exit(0 if blocks else "no PGP key")
END
    echo "deb [signed-by=$key] $1/stable/deb/\$(ARCH) /" >"$work/source"
  }
  refresh() { # of that repository only: the others are the owner's
    # shellcheck disable=SC2086
    apt-get -qq $limits -o DPkg::Lock::Timeout=300 -o APT::Update::Error-Mode=any -o APT::Get::List-Cleanup=0 \
      -o Dir::Etc::sourceparts=- -o Dir::Etc::sourcelist="$source" update
  }
  refresh_all() { apt-get -qq -o DPkg::Lock::Timeout=300 update; }
  pinned() { for name in $packages; do echo "$name=$1"; done; }
elif command -v dnf >/dev/null; then
  source=/etc/yum.repos.d/nvidia-container-toolkit.repo
  key=
  list() { rpm --query --all --queryformat '%{NAME}\n'; }
  known() { grep -rhs -v '^ *#' /etc/yum.repos.d | grep -qF "$1/"; }
  add() { dnf --quiet --assumeyes --setopt=install_weak_deps=False --setopt=timeout=20 install "$@"; }
  describe() {
    cat >"$work/source" <<END
[nvidia-container-toolkit]
name=NVIDIA's container toolkit
baseurl=$1/stable/rpm/\$basearch
gpgkey=$1/gpgkey
repo_gpgcheck=1
gpgcheck=0
enabled=1
END
  }
  refresh() { :; } # dnf refreshes when it installs
  refresh_all() { :; }
  pinned() { for name in $packages; do echo "$name-$1"; done; }
fi

place() { # file, path: recorded first, so that purge always knows
  if [ -e "$2" ]; then return 0; fi # an existing file stays
  echo "$(sha256sum <"$1" | cut -d ' ' -f 1)  $2" >>"$added/toolkit.files"
  install -m 0644 "$1" "$2"
  placed="$placed $2"
}

finish() { # records dependencies; removes a useless source
  ended=$?
  list | sort -u >"$work/there"
  comm -13 "$work/had" "$work/there" | sort -u - "$added/toolkit" >"$work/toolkit"
  mv "$work/toolkit" "$added/toolkit"
  if ! command -v nvidia-ctk >/dev/null; then
    # shellcheck disable=SC2086 # one word per file
    rm -f $placed
    rm -f "$added/toolkit.files"
  fi
  rm -rf "$work"
  exit $ended
}

install_toolkit() { # repository, version
  command -v list >/dev/null || cannot 4 "neither apt nor dnf is there"
  list | sort -u >"$work/had"
  for name in $packages; do
    if grep -qx "$name" "$work/had"; then
      cannot 5 "$name is there, but no nvidia-ctk: it is too old, or half of it is missing"
    fi
  done
  touch "$added/toolkit"
  placed=
  trap finish EXIT
  if ! known "$1"; then
    describe "$1" >"$work/words" 2>&1 || cannot 4 "$1/gpgkey: $(said)"
    if [ -n "$key" ]; then place "$work/key" "$key"; fi
    place "$work/source" "$source"
    refresh >"$work/words" 2>&1 || cannot 4 "$(said)"
  else
    refresh_all >&2 || true # an old list may be enough
  fi
  wanted=$(pinned "$2")
  # shellcheck disable=SC2086 # one word per package
  if ! add $wanted >"$work/words" 2>&1; then
    refresh_all >&2 || true # for its dependencies from the distribution
    add $wanted >"$work/words" 2>&1 || cannot 4 "$(said)"
  fi
  echo "added NVIDIA's container toolkit $2"
}

# -- the two verbs

needed_by() { # its other users
  if [ -e "$settings" ] && grep -q '"default-runtime" *: *"nvidia"' "$settings"; then
    echo "$settings has it as the default runtime"
  fi
  docker container ls -aq --no-trunc >"$work/all" 2>/dev/null || return 0
  docker container ls -aq --no-trunc --filter label=com.docker.compose.project=minga >"$work/ours"
  grep -vxF -f "$work/ours" "$work/all" | xargs -r docker container inspect \
    --format '{{.Name}} {{.HostConfig.Runtime}} {{json .HostConfig.DeviceRequests}}' |
    sed -n -e 's|^/\([^ ]*\) nvidia .*|the container \1 uses it|p' -e t \
      -e 's|^/\([^ ]*\) .*gpu.*|the container \1 uses it|p'
}

forget() {
  [ -e "$added/daemon.left" ] || return 0
  rm -f "$work/left"
  if [ ! -e "$settings" ]; then # the owner removed it
    rm -f "$added/daemon.json"
    : >"$work/before"
  elif cmp -s "$settings" "$added/daemon.left"; then
    if [ -e "$added/daemon.json" ]; then cp "$added/daemon.json" "$work/before"; else : >"$work/before"; fi
  elif reason=$(edit has "$settings" 2>&1); then
    edit without "$settings" >"$work/left"
    cp "$work/left" "$work/before"
  else
    if [ -n "$reason" ]; then echo "kept $reason"; fi
    return 0
  fi
  if knows; then # a reload ignores missing keys: write an empty one first, then the rest
    edit empty "$work/before" >"$work/empty"
    put "$work/empty"
    reload knows_not || echo "kept the runtime nvidia in Docker's memory: sudo systemctl restart docker"
  fi
  if [ -e "$work/left" ]; then put "$work/left"; else put_back; fi
  echo "runtime nvidia of $settings"
}

case $verb in
  add)
    mkdir -p "$added"
    cp "$0" "$added/toolkit.sh" # for purge: the same version undoes it
    if ! command -v nvidia-ctk >/dev/null; then install_toolkit "$@"; fi
    tell_docker
    ;;
  forget)
    if [ ! -s "$added/toolkit" ] && [ ! -e "$added/daemon.left" ]; then exit 0; fi # everything is the owner's
    needed_by >"$work/needed"
    if [ -s "$work/needed" ]; then
      echo "kept NVIDIA's container toolkit: $(head -n 1 "$work/needed")"
      exit 3
    fi
    forget
    ;;
esac
