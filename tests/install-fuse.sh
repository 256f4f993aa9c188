#!/bin/sh
# See to libfuse 3, with `--tests` to what the tests try a mount with, with `--desktop` to file managers, with
# `--bench` to other mounts to measure ours against, or say the one line that does.
set -u
need=""
have() { ldconfig -p 2>/dev/null | grep -q "$1" || ls /usr/lib/*/"$1"* /lib/*/"$1"* >/dev/null 2>&1; }
command_or() { command -v "$1" >/dev/null 2>&1 || need="$need $2"; }
have libfuse3.so.3 || have libfuse3.so.4 || need="$need fuse3 libfuse3-3"
command_or fusermount3 fuse3
if [ "${1:-}" = --tests ]; then
    have libfuse.so.2 || need="$need libfuse2"
    command_or rsync rsync
    command_or getfattr attr
    command_or zip zip
    command_or unzip unzip
    command_or file file
    command_or diff diffutils
    command_or gio libglib2.0-bin
    command_or exiftool libimage-exiftool-perl
    command_or optipng optipng
    command_or mogrify imagemagick
    command_or jpegoptim jpegoptim
    command_or gifsicle gifsicle
    command_or pngcrush pngcrush
    command_or exiv2 exiv2
    command_or unison unison
    command_or aria2c aria2
    command_or sqlite3 sqlite3
    command_or git git
    command_or perl perl
fi
if [ "${1:-}" = --desktop ]; then
    command_or thunar thunar
    [ -x /usr/lib/*/tumbler-1/tumblerd ] 2>/dev/null || need="$need tumbler"
    command_or pcmanfm pcmanfm
    command_or nautilus nautilus
    command_or xterm xterm
    command_or Xvfb xvfb
    command_or xwd x11-apps
    command_or convert imagemagick
    command_or dbus-run-session dbus-daemon
fi
if [ "${1:-}" = --bench ]; then
    have libfuse.so.2 || need="$need libfuse2"
    command_or s3fs s3fs
fi
[ -z "$need" ] && exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing; install the packages that your system calls:$need" >&2
    exit 0
fi
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"
updated=""
# names differ between releases (libfuse2 is libfuse2t64 on some), so a failure of one leaves the others
for package in $(printf '%s\n' $need | sort -u); do
    for name in "$package" "${package}t64"; do
        DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "$name" >/dev/null 2>&1 && continue 2
        if [ -z "$updated" ]; then
            updated=yes
            $sudo apt-get update -qq >/dev/null 2>&1
            DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "$name" >/dev/null 2>&1 && continue 2
        fi
    done
    echo "$package could not be installed; try: sudo apt-get install $package" >&2
done
exit 0
