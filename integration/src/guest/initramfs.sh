#!/bin/sh
# First program of the guest: opens the signed root and the signed kit, then hands over to the kit.
# Every failure ends the machine; the host sees that no result was written.
set -e
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
trap 'echo "initramfs: failed"; poweroff -f' EXIT
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
# ext4 asks for the first two by name only
for m in crc32c_generic crc32c_intel MODULES; do modprobe $m 2>/dev/null || echo "initramfs: no module $m"; done
for word in $(cat /proc/cmdline); do
    case $word in
    root_hash=*) root=${word#*=} ;;
    kit_hash=*) kit=${word#*=} ;;
    first=*) first=${word#*=} ;;
    *_offset=*) eval "${word%%=*}=${word#*=}" ;;
    esac
done
mkdir -p /host /lower /upper
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=none host /host
open() { # device, name, root hash, offset of the hash tree
    veritysetup open "/dev/$1" "$2" "/dev/$1" "$3" --hash-offset="$4" --root-hash-signature="/host/$2.p7s"
    [ -e "/dev/mapper/$2" ] || dmsetup mknodes
}
open vda root "$root" "$root_offset"
open vdb kit "$kit" "$kit_offset"
mount -t erofs -o ro /dev/mapper/root /lower
mount -t tmpfs -o mode=755 tmpfs /upper; mkdir /upper/upper /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work root /newroot
cd /newroot; mkdir -p proc sys dev host kit run tmp; cd /
mount -t erofs -o ro /dev/mapper/kit /newroot/kit
mount -t tmpfs -o mode=755 run /newroot/run
mount -t tmpfs modules /newroot/lib/modules; cp -a /lib/modules/* /newroot/lib/modules/
for d in dev proc sys host; do mount --move /$d /newroot/$d; done
trap - EXIT
if [ "$first" = systemd ]; then
    cat > /newroot/etc/systemd/system/hallmark.service <<'UNIT'
[Unit]
Requires=basic.target dbus.service
After=basic.target dbus.service
[Service]
Type=oneshot
ExecStart=/kit/bin/integration guest-init --init systemd
StandardOutput=journal+console
UNIT
    exec switch_root /newroot /usr/lib/systemd/systemd
fi
exec switch_root /newroot /kit/bin/integration guest-init
