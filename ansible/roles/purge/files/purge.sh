#!/bin/sh
# Removes from a PC what `make deploy` added:   purge.sh FOLDER PRIORITY [keep-docker]
# Prints a line for each removed thing, and `kept ...` for each remaining one, with the reason.
set -u
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
folder=$1 priority=$2 keep=${3:-}
added=$folder/added
unit=/etc/systemd/system/minga-firewall.service

# -- containers and images

if docker version >/dev/null 2>&1; then
  for id in $(docker container ls -aq --filter label=com.docker.compose.project=minga); do
    docker container rm --force "$id" >/dev/null && echo "container $id"
  done
  for id in $(docker image ls -q --filter label=minga.build | sort -u); do
    docker image rm --force "$id" >/dev/null && echo "image $id"
  done
fi

# -- firewall

if [ -e $unit ]; then
  "$folder/firewall.py" close 0
  systemctl disable --now --quiet minga-firewall.service
  rm $unit
  systemctl daemon-reload
  systemctl reset-failed minga-firewall.service 2>/dev/null
  echo "service minga-firewall"
fi
if nft list table inet minga >/dev/null 2>&1; then
  nft delete table inet minga && echo "table inet minga"
fi
if command -v ufw >/dev/null; then
  ufw show added | sed -n "s/^ufw allow \(.*\) comment 'minga'$/\1/p" | while read -r rule; do
    # shellcheck disable=SC2086 # the rule's words
    ufw delete allow $rule >/dev/null && echo "ufw rule $rule"
  done
fi
if firewall-cmd --state >/dev/null 2>&1; then
  for zone in $(firewall-cmd --permanent --get-zones); do
    firewall-cmd --permanent --zone="$zone" --list-rich-rules | grep "^rule priority=\"$priority\"" | while read -r rule; do
      firewall-cmd --quiet --permanent --zone="$zone" --remove-rich-rule="$rule"
      firewall-cmd --quiet --zone="$zone" --remove-rich-rule="$rule"
      echo "firewalld rule in $zone: $rule"
    done
    # firewalld wrote the zone down for our rules; where it now says what the distribution says, the
    # copy goes. Its backup is a trace of us, too.
    copy=/etc/firewalld/zones/$zone.xml original=/usr/lib/firewalld/zones/$zone.xml
    if grep -q "priority=\"$priority\"" "$copy.old" 2>/dev/null; then rm "$copy.old"; fi
    if [ -e "$copy" ] && [ -e "$original" ] && [ "$(tr -d ' \t\n' <"$copy")" = "$(tr -d ' \t\n' <"$original")" ]; then
      rm "$copy"
    fi
  done
fi

# -- packages

# dpkg and rpm refuse to remove what another package needs; apt and dnf would take that along.
remove() { # the file that lists them
  if command -v dpkg >/dev/null; then
    xargs -r dpkg --purge <"$1" >/dev/null 2>"$added/words"
    dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\n' | sed -n 's/^ii *//p'
  else
    xargs -r rpm --erase <"$1" 2>"$added/words"
    rpm --query --all --queryformat '%{NAME}\n'
  fi | sort -u >"$added/there"
  comm -23 "$1" "$added/there" | sed 's/^/package /'
  comm -12 "$1" "$added/there" | sed 's/$/: another package needs it/; s/^/kept package /'
  [ ! -e "$1.files" ] || while read -r sum path; do
    if [ -d "$path" ]; then
      rmdir "$path" 2>/dev/null && echo "folder $path"
    elif [ -e "$path" ] && [ "$(sha256sum <"$path" | cut -d ' ' -f 1)" != "$sum" ]; then
      echo "kept $path: it was changed since"
    elif [ -e "$path" ]; then
      rm "$path" && echo "file $path"
    fi
  done <"$1.files"
}

# Before Docker, which forgets the runtime first. The script is the one that added it.
if [ -e "$added/toolkit.sh" ]; then
  sh "$added/toolkit.sh" forget "$added"
  case $? in
    0) if [ -e "$added/toolkit" ]; then remove "$added/toolkit"; fi ;;
    3) ;; # kept, as it said
    *) echo "kept NVIDIA's container toolkit: Docker does not drop it" ;;
  esac
fi

others_use_docker() {
  [ -n "$(docker container ls -aq)$(docker image ls -q)$(docker volume ls -q)" ]
}

had() { grep -qx "$1" "$added/before"; }

drop_rules() { # iptables or ip6tables: Docker leaves its rules behind
  "$1-save" 2>/dev/null | while read -r word rest; do
    case $word in
      \**) table=${word#\*} ;;
      -A) case $rest in *DOCKER* | *docker0*) eval "$1 -w -t $table -D $rest" ;; esac ;;
    esac
  done
  for table in filter nat raw; do
    chains=$("$1-save" -t $table 2>/dev/null | sed -n 's/^:\(DOCKER[^ ]*\) .*/\1/p')
    for chain in $chains; do "$1" -w -t $table -F "$chain"; done
    for chain in $chains; do "$1" -w -t $table -X "$chain"; done
  done
  if had "forward 0"; then "$1" -w -P FORWARD ACCEPT; fi # Docker shuts it where it starts forwarding
}

remove_docker() {
  systemctl stop docker.socket docker.service containerd.service 2>/dev/null
  drop_rules iptables
  drop_rules ip6tables
  if command -v nft >/dev/null && ! had "had unknown"; then
    nft list tables | sed 's/^table/had/' | grep -E '^had ip6? (filter|nat|raw|mangle)$' | while read -r table; do
      if ! had "$table"; then nft delete table "${table#had }"; fi
    done
  fi
  ip link delete docker0 2>/dev/null
  if had "forward 0"; then echo 0 >/proc/sys/net/ipv4/ip_forward; fi
  remove "$added/engine"
  for path in /etc/docker /etc/containerd /etc/cni /var/lib/docker /var/lib/containerd /opt/containerd; do
    if [ -e $path ] && ! had "path $path"; then
      rm -rf $path 2>/dev/null || find $path -mindepth 1 -delete # a disk of its own may be mounted there
      echo "folder $path"
    fi
  done
  if ! had "group docker" && grep -q '^docker:' /etc/group; then groupdel docker; fi
}

if [ -s "$added/engine" ]; then
  if [ -n "$keep" ]; then
    echo "kept Docker: KEEP_DOCKER=1"
  elif others_use_docker; then
    echo "kept Docker: there are other containers, images or volumes in it"
  else
    remove_docker
  fi
fi
if [ -e "$added/tools" ]; then remove "$added/tools"; fi

# -- files

if [ -d "$folder" ]; then
  rm -rf "$folder"
  echo "folder $folder"
fi
