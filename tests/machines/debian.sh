#!/usr/bin/env bash
# make demo and make test on a bare Debian, as root: tests/machines/debian.sh trixie [TARGET ...]
#
# Makes a chroot of this release in $CHROOT (default: a new folder, removed at the end) with the
# packages that README names and nothing else, clones HEAD into it and runs the targets (default:
# demo test). Needs debootstrap and 15 GB. An existing $CHROOT is used again, with its environment.
set -euo pipefail
suite=${1:?usage: debian.sh SUITE [TARGET ...]}
targets=${*:2}
targets=${targets:-demo test}
repository=$(cd "$(dirname "$0")/../.." && pwd)
packages=$(sed -n 's/^apt install \([^#]*\).*/\1/p' "$repository/README.md")
if [ -z "${CHROOT:-}" ]; then
  CHROOT=$(mktemp -d /var/tmp/"$suite".XXXX)
  trap 'rm -rf --one-file-system "$CHROOT"' EXIT
fi
if [ ! -e "$CHROOT/root" ]; then
  debootstrap --variant=minbase --include=ca-certificates "$suite" "$CHROOT"
fi
cp /etc/resolv.conf /etc/hosts "$CHROOT/etc/"
# Of a network with a certificate authority of its own.
cp /etc/ssl/certs/ca-certificates.crt "$CHROOT/etc/ssl/certs/"
git clone --quiet --bare "$repository" "$CHROOT/root/clone-$$"

# Mounts of a namespace of its own, which end with it.
export suite CHROOT packages clone=/root/clone-$$ targets
unshare --mount bash -euc '
  mount --rbind /dev "$CHROOT/dev"
  mount -t proc proc "$CHROOT/proc"
  mount -t tmpfs tmpfs "$CHROOT/tmp"
  exec chroot "$CHROOT" /usr/bin/env -i HOME=/root TERM=dumb LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    bash -euc "
      apt-get update -qq
      apt-get install -qq --no-install-recommends $packages
      [ -d /root/internimage-mm ] || git clone --quiet $clone /root/internimage-mm
      cd /root/internimage-mm
      git pull --quiet $clone HEAD
      cat /etc/os-release | head -1; python3 --version; g++ --version | head -1
      for target in $targets; do
        time make \$target
      done"'
