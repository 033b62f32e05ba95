#!/bin/sh
# Installs on a PC, through its distribution, what is named:   install.sh FOLDER engine|compose|PACKAGE ...
# Nothing that is there is replaced or removed. What came with it is noted in FOLDER, for `make purge`.
set -eu
export LC_ALL=C
added=$1
shift
mkdir -p "$added"

if command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  list() { dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\n' | sed -n 's/^ii *//p'; }
  refresh() { apt-get -qq -o DPkg::Lock::Timeout=300 update || true; } # an old list may do, too
  add() { apt-get -qq -y --no-remove --no-install-recommends -o DPkg::Lock::Timeout=300 install "$@"; }
  candidate() { apt-cache policy "$1" | sed -n 's/^  Candidate: *//p' | grep -v '(none)'; }
  new_enough() { dpkg --compare-versions "$1" ge 2.18; }
  engines="docker.io docker-cli" # the second where the first does not bring it
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
  echo "neither apt nor dnf is there to install $* with" >&2
  exit 4
fi

missing() { # what is looked for
  name=$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release | tr -d '"')
  echo "${name:-this system} has no $1 among its packages" >&2
  exit 4
}

# What Docker changes beside its packages, as it was: purge puts it back.
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
      echo "had unknown" # then none is taken for Docker's later
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
      [ -n "$found" ] || missing "Docker Compose 2.18 or newer"
      wanted="$wanted $found"
      ;;
    *) wanted="$wanted $what" ;;
  esac
done
# shellcheck disable=SC2086 # one word per package
add $wanted >&2
