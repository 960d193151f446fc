"""What the tiny test guest is made of beside programs: its init and its few scripts."""

from __future__ import annotations

INIT = """\
#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=755 run /run
mkdir /run/lock
chmod 1777 /tmp /dev/shm
while read -r module; do insmod "$module"; done </etc/modules
ip link set lo up
mount -t ext4 /dev/vda /srv

cmdline=" $(cat /proc/cmdline) "
knob() { case "$cmdline" in *" rave.$1"[\\ =]*) return 0 ;; esac; return 1; }

if knob hang; then
    echo 'This guest hangs: rave.hang'
    while :; do sleep 3600; done
fi
knob nogrow || resize2fs /dev/vda >/dev/null 2>&1
user=agent
knob nouser && user=someoneelse && sed -i "s/agent/$user/g" /etc/passwd /etc/shadow /etc/group /bin/web-connection
mkdir -p /srv/merge-request "/home/$user"
chown -R 1000:1000 /srv/merge-request "/home/$user"

dropbear_options=-s
if knob password; then
    dropbear_options=
    sed -i "s|^$user:[^:]*|$user:$(cat /etc/password-hash)|" /etc/shadow
fi
knob noforward && dropbear_options="$dropbear_options -k"
if knob notool; then
    ln -sf /usr/bin/dash /bin/sh # busybox's shell finds the programs that are part of it without their files
    for tool in $(sed -n 's/.*rave\\.notool=\\([^ ]*\\).*/\\1/p' /proc/cmdline | tr , ' '); do rm "/bin/$tool"; done
fi

if knob fixedhostkey; then
    cp /etc/dropbear/fixed_host_key /etc/dropbear/host_key
else
    dropbearkey -t ed25519 -f /etc/dropbear/host_key >/dev/null 2>&1
fi
dropbearkey -y -f /etc/dropbear/host_key | grep '^ssh-' >/etc/ssh/ssh_host_ed25519_key.pub
knob nosshd || dropbear $dropbear_options -r /etc/dropbear/host_key
web=/bin/web-connection
knob deafweb && web='/bin/sleep 100000'
knob noshutdown && printf '#!/bin/sh\\nexit 0\\n' >/sbin/shutdown
{
    knob noagent || echo '::respawn:/usr/sbin/qemu-ga -m virtio-serial -p /dev/agent -t /run'
    knob noweb || echo "::respawn:/bin/nc -ll -p 3002 -e $web"
    knob noshutdown || echo '::respawn:/bin/acpid -d -l /dev/null'
    knob nodhcp || echo '::respawn:/bin/udhcpc -f -i eth0 -t 20 -T 1 -A 1 -s /bin/dhcp-event'
} >/etc/inittab
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] && ln -s "/dev/${port##*/}" /dev/agent
done
knob nohotplug && echo 0 >/sys/bus/virtio/drivers_autoprobe
exec /bin/init
"""

ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:agent:/home/agent:/bin/sh\n",
    "shadow": "root:*:19000::::::\nagent:*:19000::::::\n",
    "password-hash": "$1$ravebot$3Pw7SSxybQZ9axG/qmUKg0\n",
    "group": "root:x:0:\nagent:x:1000:\n",
    "shells": "/bin/sh\n",
    "hosts": "127.0.0.1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "profile": "export PATH=/bin:/sbin:/usr/bin:/usr/sbin\n",
}

SCRIPTS = {
    "sbin/shutdown": "#!/bin/sh\nsync\nmount -o remount,ro /srv\nexec /bin/poweroff -f\n",
    "etc/acpi/PWRF/00000080": "#!/bin/sh\nexec /sbin/shutdown\n",
    "bin/noise": "#!/bin/sh\nexec cat /dev/urandom\n",
    # A process per connection enters the folder anew, so it serves what was just moved into its place.
    "bin/web-connection": "#!/bin/sh\nexec su agent -c 'exec httpd -i -h /srv/merge-request'\n",
    "bin/dhcp-event": """\
#!/bin/sh
steal=$(sed -n 's/.*rave\\.stealaddress=\\([0-9.]*\\).*/\\1/p' /proc/cmdline)
case "$1" in
deconfig) ip link set "$interface" up ;;
bound | renew)
    ip addr flush dev "$interface"
    ip addr add "${steal:-$ip}/$mask" dev "$interface"
    for gateway in $router; do ip route replace default via "$gateway"; done
    : >/etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
    ;;
esac
""",
}
