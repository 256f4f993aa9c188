#!/bin/sh
# See to libfuse 3 (and the libfuse 2 that the tests run on too), or say the one line that does.
set -u
need=""
have() { ldconfig -p 2>/dev/null | grep -q "$1" || ls /usr/lib/*/"$1"* /lib/*/"$1"* >/dev/null 2>&1; }
have libfuse3.so.3 || have libfuse3.so.4 || need="$need fuse3 libfuse3-3"
command -v fusermount3 >/dev/null 2>&1 || need="$need fuse3"
have libfuse.so.2 || need="$need libfuse2"
[ -z "$need" ] && exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "libfuse is missing; install the packages that your system calls:$need" >&2
    exit 0
fi
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"
# the name of libfuse 2 differs between releases, so a failure of one package leaves the others
for package in $(printf '%s\n' $need | sort -u); do
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "$package" >/dev/null 2>&1 ||
        { $sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "$package" >/dev/null; } ||
        echo "$package could not be installed; try: sudo apt-get install $package" >&2
done
exit 0
