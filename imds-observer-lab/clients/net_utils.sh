#!/bin/bash
# What amazon-ec2-net-utils asks for one interface: a token for each question.
set -eu
. "$1/usr/share/amazon-ec2-net-utils/lib.sh"
# There is no syslog in the lab.
log() { :; }
mac=$(get_meta mac)
get_iface_imds "$mac" device-number
get_iface_imds "$mac" local-ipv4s
