#!/bin/sh
# Installs packages on a PC through its distribution:   install.sh FOLDER engine|compose|PACKAGE ...
# Nothing is replaced or removed. Added packages are recorded in FOLDER, for `make purge`.
set -eu
export LC_ALL=C
added=$1 plugin=/usr/local/lib/docker/cli-plugins/docker-compose
shift
mkdir -p "$added"

if command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  list() { dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\n' | sed -n 's/^ii *//p'; }
  refresh() { apt-get -qq -o DPkg::Lock::Timeout=300 update || true; } # an old list may be enough
  add() { apt-get -qq -y --no-remove --no-install-recommends -o DPkg::Lock::Timeout=300 install "$@"; }
  candidate() { apt-cache policy "$1" | sed -n 's/^  Candidate: *//p' | grep -v '(none)'; }
  new_enough() { dpkg --compare-versions "$1" ge 2.18; }
  engines="docker.io docker-cli" # the second if the first does not contain it
  composes="docker-compose-plugin docker-compose-v2 docker-compose"
elif command -v dnf >/dev/null; then
  list() { rpm --query --all --queryformat '%{NAME}\n'; }
  refresh() { :; }
  add() { dnf --quiet --assumeyes --setopt=install_weak_deps=False install "$@"; }
  candidate() { dnf --quiet repoquery --latest-limit=1 --queryformat '%{VERSION}\n' "$1" | grep .; }
  new_enough() { case $1 in 2.?.* | 2.1[0-7].* | 1.*) false ;; esac; }
  engines="moby-engine docker-cli"
  composes="docker-compose-plugin docker-compose"
else
  echo "neither apt nor dnf is available to install $*" >&2
  exit 4
fi

absent() { # paths: prints the missing ones
  for path in "$@"; do [ -e "$path" ] || echo "$path"; done
}

missing() { # the package
  name=$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release | tr -d '"')
  echo "${name:-this system} has no $1 among its packages" >&2
  exit 4
}

# Debian 12 has Compose 1 only. Debian 13's plugin is one file that needs only libc: it is extracted
# from its package, from the PC's own mirror, with Debian's signature. An existing one stays.
of_debian() ( # the plugin's path
  inside=usr/libexec/docker/cli-plugins/docker-compose
  # shellcheck disable=SC1091 # each PC's own
  . /etc/os-release
  [ "$ID ${VERSION_ID:-0}" = "debian 12" ] && [ ! -e "$1" ] || exit 1
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  # shellcheck disable=SC2016 # apt's variables
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    sed -n "s/ $VERSION_CODENAME main$//p" | head -n 1)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$folder/list"
  of_next() {
    apt-get -qq -o APT::Sandbox::User=root -o Dir::State::Lists="$folder/lists" -o Dir::Cache="$folder" \
      -o Dir::Etc::SourceList="$folder/list" -o Dir::Etc::SourceParts=/dev/null "$@" >&2
  }
  mkdir -p "$folder/lists/partial" "$folder/archives/partial" && cd "$folder" &&
    of_next update && of_next download docker-compose &&
    dpkg-deb --extract docker-compose_*.deb . && ./$inside version >&2 &&
    install -D --mode 755 $inside "$1"
)

# State that Docker changes beside its packages: purge restores it.
remember() {
  {
    for path in /etc/docker /etc/containerd /etc/cni /var/lib/docker /var/lib/containerd /opt/containerd; do
      [ ! -e $path ] || echo "path $path"
    done
    ! grep -q '^docker:' /etc/group || echo "group docker"
    echo "forward $(cat /proc/sys/net/ipv4/ip_forward)"
    if command -v nft >/dev/null; then
      nft list tables | sed 's/^table/had/'
    elif command -v iptables >/dev/null; then
      echo "had unknown" # then purge attributes none to Docker
    fi
  } >"$added/before"
}

before=$(mktemp)
after=$(mktemp)
note=$added/tools
finish() {
  list | sort -u >"$after"
  comm -13 "$before" "$after" | sort -u - "$note" >"$note.new" && mv "$note.new" "$note"
  rm -f "$before" "$after"
}

list | sort -u >"$before"
wanted=
for what in "$@"; do
  [ "$what" != engine ] || note=$added/engine
done
touch "$note"
trap finish EXIT
refresh >&2
for what in "$@"; do
  case $what in
    engine)
      [ -s "$added/before" ] || remember
      found=
      for name in $engines; do
        if candidate "$name" >/dev/null; then found="$found $name"; fi
      done
      [ -n "$found" ] || missing "Docker engine"
      wanted="$wanted$found"
      ;;
    compose)
      found=
      for name in $composes; do
        if version=$(candidate "$name") && new_enough "$version"; then
          found=$name
          break
        fi
      done
      if [ -n "$found" ]; then
        wanted="$wanted $found"
      elif new=$(absent "$plugin" "${plugin%/*}" "${plugin%/*/*}") && of_debian "$plugin"; then
        for path in $new; do
          if [ -d "$path" ]; then echo "folder $path"; else sha256sum "$path"; fi
        done >>"$note.files"
      else
        missing "Docker Compose 2.18 or newer"
      fi
      ;;
    *) wanted="$wanted $what" ;;
  esac
done
# shellcheck disable=SC2086 # one word per package
[ -z "$wanted" ] || add $wanted >&2
