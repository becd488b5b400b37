#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that the builds need; does nothing where they are there. What the local cluster
# needs is installed by `flywheel-localcluster programs --install-packages`.
set -euo pipefail
packages=(binutils ca-certificates curl faketime g++ python3-venv unzip)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
echo "packages: installing ${missing[*]}" >&2
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
