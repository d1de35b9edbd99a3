#!/bin/sh
# Writes the disk in an image of imageroot to a device, reads it back and compares it:
#   curl -f SERVER/flash.sh | sh -s -- [--yes] NAME DEVICE
# It needs what rescue systems have: a POSIX shell, curl or wget, dd, sha256sum, and the
# small programs of coreutils or BusyBox. All of it is functions, and the last line calls
# them, so a script that was cut off does nothing.
set -u
LC_ALL=C
export LC_ALL

server='@SERVER@' # the server fills it in
block=1048576     # bytes of a write; a resumed download begins at a multiple of it

usage() {
  cat >&2 <<END
usage: curl -f $server/flash.sh | sh -s -- [--yes] NAME DEVICE

Writes the disk in the image NAME to DEVICE (a disk such as /dev/sdX, or a regular file of
that size at least), reads it back and compares its SHA-256 with the server's.

  --yes   do not ask before DEVICE is overwritten
  --      the next argument is NAME, even if it begins with a hyphen

IMAGEROOT_TOKEN is sent to the server, and to no other, as the token if it is set.
END
  exit 2
}

say() { printf '%s\n' "$*" >&2; }
die() { say "flash.sh: $*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# shown removes what could change the terminal from foreign text: control characters of ASCII,
# and those of Unicode (U+0080 to U+009F) in UTF-8.
shown() { tr -d '\000-\010\013-\037\177' | sed "s/$(printf '\302')[$(printf '\200-\237')]//g"; }

# human prints a number of bytes for people.
human() {
  if [ "$1" -ge 10737418240 ]; then echo "$(($1 / 1073741824)) GiB ($1 bytes)"
  elif [ "$1" -ge 10485760 ]; then echo "$(($1 / 1048576)) MiB ($1 bytes)"
  else echo "$1 bytes"; fi
}

# encoded prints text as part of a URL, every byte of it percent-encoded.
encoded() { printf '%s' "$1" | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g'; }

main() {
  yes=
  while [ $# -gt 0 ]; do
    case $1 in
      --yes) yes=1 ;;
      --) shift; break ;;
      -*) usage ;;
      *) break ;;
    esac
    shift
  done
  if [ $# != 2 ] || [ -z "$1" ] || [ -z "$2" ]; then usage; fi
  name=$1 device=$2 given=
  case $name in *[!0-9a-f]*) ;; *) [ ${#name} != 64 ] || given=$name ;; esac
  for program in dd sha256sum od sed tr head readlink; do
    has "$program" || die "$program is missing"
  done
  tools
  examine
  ask_server 0
  [ "$capacity" -ge "$size" ] || die "$device is too small: it has $(human "$capacity"), and the disk in $name has $(human "$size")"
  confirm
  trap 'say; die "interrupted: $device is overwritten in part. The same command starts again."' INT TERM
  download
  compare
}

# tools finds out which program downloads, and puts the token where it reads it: everyone on
# this machine can read its arguments.
tools() {
  token=${IMAGEROOT_TOKEN:-}
  if has curl; then tool=curl
  elif ! has wget; then die "curl and wget are missing"
  elif wget --version 2>&1 | grep -q 'GNU Wget'; then tool=wget
  else tool=busybox; fi # which can request no ranges to a pipe
  run=${tool#busybox}
  [ -n "$token" ] || return 0
  case $token in *[!!-~]*) die "IMAGEROOT_TOKEN has characters that no token has" ;; esac
  run=with_token
  case $tool in
    curl)
      token=$(sed 's/[\\"]/\\&/g' <<END
$token
END
      )
      ;;
    wget)
      has mktemp || die "mktemp is missing"
      secret=$(mktemp) || exit 1 # only its owner can read it
      trap 'rm -f "$secret"' EXIT
      trap 'exit 1' HUP INT TERM
      cat >"$secret" <<END
header = Authorization: Bearer $token
END
      ;;
    busybox) die "the wget of BusyBox shows IMAGEROOT_TOKEN to everyone on this machine, and sends it wherever the server redirects: install curl or GNU wget" ;;
  esac
}

# with_token has the token sent to the server only: redirects are not followed.
with_token() {
  case $tool in
    curl) curl -K - --max-redirs 0 "$@" <<END ;;
header = "Authorization: Bearer $token"
END
    wget) WGETRC=$secret wget --max-redirect=0 "$@" ;;
  esac
}

# get prints a short answer.
get() {
  case $tool in
    curl) $run -fsSL --connect-timeout 20 --max-time 120 "$1" ;;
    wget) $run --no-iri -nv -T 60 -t 1 -O - "$1" ;;
    busybox) wget -q -O - "$1" ;;
  esac
}

# elsewhere prints the URL to which the server redirects the download of a disk.
elsewhere() {
  case $tool in
    curl) with_token -fsS --connect-timeout 20 --max-time 120 -r 0-0 -o /dev/null -w '%{redirect_url}' "$1" ;;
    wget) with_token --no-iri -S -T 60 -t 1 -O /dev/null --header='Range: bytes=0-0' "$1" 2>&1 | tr -d '\r' | sed -n 's/^ *[Ll]ocation: //p' | head -n 1 ;;
  esac
}

# fetch prints the answer of a URL from an offset on, and its progress on descriptor 3.
fetch() {
  url=$1
  if [ "$run" = with_token ] && [ "$redirect" = yes ]; then
    found=$(elsewhere "$url") || found=
    case $found in http://* | https://*) url=$found run=$tool ;; esac
  fi
  quiet=1
  [ -t 3 ] && quiet=
  case $tool in
    curl) $run -fL ${quiet:+-sS} --connect-timeout 20 --speed-limit 1 --speed-time 300 -C "$2" "$url" 2>&3 ;;
    wget)
      if [ -z "$quiet" ]; then show=--show-progress; else show=; fi
      if [ "$2" = 0 ]; then start=; else start=--start-pos=$2; fi
      $run --no-iri -nv ${show:+"$show"} -T 300 -t 1 -O - ${start:+"$start"} "$url" 2>&3
      ;;
    busybox) wget ${quiet:+-q} -O - "$url" 2>&3 ;;
  esac
}

# ask_server sets size, sum, path, ranges and redirect, as soon as the server can send the disk from an
# offset on. It waits while the server says so, and ends with the server's reason if the disk
# cannot be had.
ask_server() {
  said='' silent=0
  while :; do
    state='' size='' sum='' path='' ranges='' redirect='' reason=''
    answer=$(get "$server/flash.sh?name=$(encoded "$name")&from=$1" 2>&1) || {
      case $answer in
        *' 401'* | *'Authentication Failed'*) die "$server asks for a token: set IMAGEROOT_TOKEN" ;;
        *' redirects followed'* | *' redirections exceeded'*) die "$server redirects, and IMAGEROOT_TOKEN is not sent there: use the address that it redirects to" ;;
      esac
      [ $silent -lt 60 ] || die "$server does not answer: $(printf '%s' "$answer" | shown)"
      [ $silent != 0 ] || say "$server does not answer: $(printf '%s' "$answer" | shown)"
      silent=$((silent + 1))
      sleep 5
      continue
    }
    silent=0
    while IFS=' ' read -r key value; do
      case $key in
        state) state=$value ;;
        size) size=$value ;;
        sha256) sum=$value ;;
        path) path=$value ;;
        ranges) ranges=$value ;;
        redirect) redirect=$value ;;
        reason) reason=$value ;;
      esac
    done <<END
$(printf '%s\n' "$answer" | shown)
END
    case $state in
      ready)
        case $size in '' | *[!0-9]*) die "$server answers without the size of the disk" ;; esac
        case $sum in *[!0-9a-f]*) sum= ;; esac
        [ ${#sum} = 64 ] || die "$server answers without the SHA-256 of the disk"
        case $path in '' | *[!0-9a-z/]*) die "$server answers without the path of the disk" ;; esac
        case $given in '' | "$sum" | "${path#raw/}") ;; *) die "$server answers with another image than the one asked for" ;; esac
        return
        ;;
      wait)
        [ "$said" = "$reason" ] || say "waiting: $reason"
        said=$reason
        sleep 5
        ;;
      fail) die "$reason" ;;
      *) die "$server is no imageroot that knows this script" ;;
    esac
  done
}

# examine finds out what the device is, and ends if it must not be written to.
examine() {
  real=$(readlink -f "$device") || real=
  if [ -z "$real" ] || [ ! -e "$real" ]; then die "$device does not exist"; fi
  sys=
  if [ -f "$real" ]; then
    capacity=$(stat -c %s "$real" 2>/dev/null || wc -c <"$real") || die "the size of $device is unknown"
    for file in /sys/block/loop*/loop/backing_file; do
      [ -e "$file" ] && [ "$(cat "$file")" = "$real" ] && die "$device is in use: $(echo "$file" | cut -d/ -f4) is made of it"
    done
    return
  fi
  [ -b "$real" ] || die "$device is neither a block device nor a regular file"
  sys=$(readlink -f "/sys/class/block/$(printf '%s' "${real#/dev/}" | tr / '!')")
  [ -e "$sys/size" ] || die "$device is not known in /sys: whether it is in use cannot be found out"
  capacity=$(($(cat "$sys/size") * 512))
  [ "$capacity" -gt 0 ] || die "$device has no medium"
  [ "$(cat "$sys/ro")" = 0 ] || die "$device is read-only"
  whole=$sys # the disk that it is, or is on
  [ -e "$sys/partition" ] && whole=${sys%/*}
  identity=$(cat "$whole/diskseq" "$sys/size" 2>/dev/null)
  for disk in $(system_disks); do
    [ "$disk" = "${whole##*/}" ] && die "$device is on the disk that runs this system"
  done
  for member in "$sys" "$sys"/*/; do
    member=${member%/}
    [ "$member" = "$sys" ] || [ -e "$member/partition" ] || continue
    refuse_used "$member"
  done
  # The kernel reads the partitions again only if nothing has the disk to itself: of a
  # file system of several disks, only one is in the list of mounts.
  if [ "$whole" = "$sys" ] && has blockdev; then
    case $(blockdev --rereadpt "$real" 2>&1) in *[Bb]usy*) die "$device is in use: the kernel says that it is busy" ;; esac
  fi
}

# still ends if the device that was examined was taken out: dd would make a file of its name,
# or write to the disk that has the name now.
still() {
  if [ -z "$sys" ]; then
    [ -f "$real" ] && return
  elif [ -b "$real" ] && [ "$(cat "$whole/diskseq" "$sys/size" 2>/dev/null)" = "$identity" ]; then
    return
  fi
  die "$device was removed or replaced meanwhile: start again"
}

# refuse_used ends if a disk or a partition, by its directory in /sys, is in use.
refuse_used() {
  used=${1##*/} number=$(cat "$1/dev")
  for holder in "$1"/holders/*; do
    [ -e "$holder" ] || continue
    what=$(cat "$holder/dm/name" 2>/dev/null) || what=
    die "$device is in use: ${holder##*/}${what:+ ($what)} is made of $used (LVM, RAID or encryption)"
  done
  while read -r _ _ at _ point rest; do
    from=${rest##* - }
    from=${from#* }
    if [ "$at" = "$number" ] || [ "$(kernel_name "${from%% *}")" = "$used" ]; then
      die "$device is in use: $used is mounted at $point"
    fi
  done </proc/self/mountinfo
  for member_of in /sys/fs/btrfs/*/devices/"$used"; do
    [ -e "$member_of" ] && die "$device is in use: $used is part of a mounted btrfs"
  done
  [ -e /proc/swaps ] || return 0
  while read -r file _; do
    [ "$(kernel_name "$file")" = "$used" ] && die "$device is in use: $used is swap"
  done </proc/swaps
}

# kernel_name prints the name in /sys of a path in /dev, and nothing for other text.
kernel_name() {
  case $1 in
    /dev/*)
      [ -b "$1" ] || return 0
      found=$(readlink -f "$1") && printf '%s' "${found#/dev/}" | tr / '!'
      ;;
  esac
}

# system_disks prints the names of the disks that the running system is on.
system_disks() {
  while read -r _ _ at _ point rest; do
    case $point in / | /usr | /boot | /boot/*) ;; *) continue ;; esac
    from=${rest##* - }
    from=${from#* }
    disks_below "$(readlink -f "/sys/dev/block/$at")"
    from=$(kernel_name "${from%% *}")
    [ -z "$from" ] || disks_below "$(readlink -f "/sys/class/block/$from")"
  done </proc/self/mountinfo
}

# disks_below prints the names of the disks that a block device, by its directory in /sys,
# is made of.
disks_below() (
  [ -e "$1/size" ] || exit 0
  for below in "$1"/slaves/*; do
    [ -e "$below" ] && disks_below "$(readlink -f "$below")"
  done
  disk=$1
  [ -e "$1/partition" ] && disk=${1%/*}
  echo "${disk##*/}"
)

# describe prints what the device is and what is on it.
describe() {
  if [ -z "$sys" ]; then
    echo "$device: a regular file of $(human "$capacity")"
    return
  fi
  model=
  for file in "$whole/device/vendor" "$whole/device/model" "$whole/device/name"; do
    [ -r "$file" ] && model="$model $(sed 's/ *$//' "$file")"
  done
  removable=
  [ "$(cat "$whole/removable" 2>/dev/null)" = 1 ] && removable=', removable'
  echo "$device:${model:- a disk of unknown model}, $(human "$capacity")$removable"
  empty=1
  for member in "$sys" "$sys"/*/; do
    member=${member%/}
    label=$(sed -n 's/^PARTNAME=//p' "$member/uevent" 2>/dev/null)
    found=
    if has blkid; then
      found=$(blkid "/dev/$(printf '%s' "${member##*/}" | tr '!' /)" 2>/dev/null |
        sed -e 's/^[^:]*: *//' -e 's/[A-Z]*UUID[_A-Z]*="[^"]*" *//g' -e 's/BLOCK_SIZE="[^"]*" *//' -e 's/PART[A-Z]*="[^"]*" *//g')
    fi
    if [ "$member" = "$sys" ]; then
      [ -n "$found" ] || continue
    elif [ ! -e "$member/partition" ]; then
      continue
    fi
    empty=
    echo "  ${member##*/}: $(human $(($(cat "$member/size") * 512)))${label:+, $label}${found:+, $found}"
  done
  [ -z "$empty" ] || echo "  no partitions"
}

# confirm asks on the terminal: the script itself may be the standard input.
confirm() {
  describe | shown >&2
  say "$name: a disk of $(human "$size"), SHA-256 $sum"
  case $given in '' | "$sum") ;; *) say "That is the SHA-256 of its disk: that the disk is the one in this image is the server's word." ;; esac
  [ -z "$yes" ] || return 0
  # Opening it fails without a terminal, which must not end the shell.
  (: </dev/tty) 2>/dev/null || die "there is no terminal to ask on: --yes overwrites $device without a question"
  printf 'Overwrite everything on %s? Type yes: ' "$device" >/dev/tty
  read -r typed </dev/tty || typed=
  [ "$typed" = yes ] || die "nothing was written"
}

# download writes the disk to the device. A download that was cut off goes on where it ended.
download() {
  from=0 idle=0
  exec 3>&2
  while :; do
    still
    # dd joins what the pipe has to blocks (ibs, obs), and syncs the device at its end.
    report=$({
      { fetch "$server/$path" "$from"; echo "download $?" >&4; } |
        dd of="$real" ibs=65536 obs=$block seek=$((from / block)) conv=notrunc,fsync 2>&4
      echo "write $?" >&4
    } 4>&1)
    case $report in
      *'write 0'*) ;;
      *) die "$device cannot be written to: $(printf '%s\n' "$report" | sed -n 's/^dd: *//p' | shown)" ;;
    esac
    # POSIX says how dd prints this: whole blocks, and those that are not.
    blocks=$(printf '%s\n' "$report" | sed -n 's/^\([0-9][0-9]*\)+[0-9]* records out.*/\1/p')
    end=$((from + ${blocks:-0} * block))
    [ "$end" -le "$size" ] || die "$server sent more than the $size bytes of the disk: start again"
    [ "$end" != "$size" ] || return 0
    case $report in *'download 0'*) [ $((size - end)) -ge $block ] || return 0 ;; esac
    say "the download was cut off after $end of $size bytes"
    if [ "$end" -gt "$from" ]; then idle=0; else idle=$((idle + 1)); fi
    [ $idle -lt 20 ] || die "the download does not go on: $device is overwritten in part"
    [ $idle = 0 ] || sleep 5
    from=$end before=$sum
    [ $tool != busybox ] || from=0
    ask_server $from
    [ "$sum" = "$before" ] || die "another image has the name $name now: start again"
    [ "$ranges" = yes ] || from=0
    say "the download goes on from byte $from"
  done
}

# compare reads the device and compares the SHA-256 of its bytes with the server's.
compare() {
  still
  direct=iflag=direct way='from the device'
  if ! dd if="$real" of=/dev/null bs=$block count=1 iflag=direct 2>/dev/null; then
    direct=
    if [ -n "$sys" ] && has blockdev && blockdev --flushbufs "$real" 2>/dev/null; then :
    elif sync && (echo 3 >/proc/sys/vm/drop_caches) 2>/dev/null; then :
    else way='perhaps from memory, since it cannot be told to forget the device'; fi
  fi
  progress=
  [ -t 2 ] && dd if=/dev/null of=/dev/null status=progress 2>/dev/null && progress=status=progress
  say "reading $(human "$size") back"
  # Not by head alone: BusyBox's counts to 4 GiB on machines of 32 bits.
  full=$((size / block)) rest=$((size % block))
  got=$({
    [ $full = 0 ] || read_back count=$full
    [ $rest = 0 ] || progress='' read_back skip=$full count=1 | head -c $rest
  } | sha256sum) || die "$device cannot be read back"
  got=${got%% *}
  [ "$got" = "$sum" ] || die "$device does not hold the image: what was read back has the SHA-256 $got, and the image $sum. The device may be faulty, or smaller than it says."
  if [ -n "$sys" ] && has blockdev; then blockdev --rereadpt "$real" 2>/dev/null; fi
  whose="the server's"
  [ "$sum" != "$given" ] || whose='the one that was given'
  echo "$name is on $device. Verified: $size bytes were read back ($way), and their SHA-256 is $whose, $sum."
}

# read_back prints a part of the device.
read_back() {
  if [ -n "$progress" ]; then dd if="$real" bs=$block ${direct:+"$direct"} "$@" "$progress"
  else dd if="$real" bs=$block ${direct:+"$direct"} "$@" 2>/dev/null; fi
}

main "$@"
