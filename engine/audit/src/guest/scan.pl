# Looks for marks: scan.pl WHAT PREFIX, WHAT one of kcore, mem, beyond, disk. Prints `bytes COUNT`, `pages COUNT` and `mark TAG COUNT`.
use strict;
my ($what, $prefix) = @ARGV;
my (%seen, $total, $pages);
sub look {
    my ($text) = @_;
    my $at = -1;
    while (($at = index($text, $prefix, $at + 1)) >= 0) {
        my $tag = substr($text, $at + length($prefix), 32);
        $seen{$tag}++ if $tag =~ /^[0-9a-f]{32}$/;
    }
}
sub scan {
    my ($file, $offset, $length) = @_;
    my ($last, $block) = ('');
    while ($length > 0) {
        my $want = $length > 1048576 ? 1048576 : $length;
        sysseek($file, $offset, 0) or last;
        my $got = sysread($file, $block, $want);
        last unless $got;
        look($last . $block);
        $last = substr($block, -96);
        $total += $got;
        $offset += $got;
        $length -= $got;
    }
}
sub ram {
    open(my $map, '<', '/proc/iomem') or die "/proc/iomem: $!\n";
    return map { /^([0-9a-f]+)-([0-9a-f]+) : System RAM/ ? [hex $1, hex($2) + 1] : () } <$map>;
}
if ($what eq 'kcore') {
    open(my $core, '<:raw', '/proc/kcore') or die "/proc/kcore: $!\n";
    sysread($core, my $head, 64) == 64 or die "/proc/kcore: short\n";
    my ($at, $size, $count) = (unpack('Q', substr($head, 32, 8)), unpack('SS', substr($head, 54, 4)));
    my @ram = ram();
    for my $n (0 .. $count - 1) {
        sysseek($core, $at + $n * $size, 0);
        sysread($core, my $entry, $size);
        my ($type, $flags, $offset, $virtual, $physical, $length) = unpack('LLQQQQ', $entry);
        # A mapping of all memory; others show parts of it again.
        next unless $type == 1 && grep { $_->[0] <= $physical && $physical < $_->[1] } @ram;
        next unless $length >= 4096 * 16 && $virtual < 0xffffffff80000000;
        scan($core, $offset, $length);
    }
} elsif ($what eq 'mem') {
    open(my $mem, '<:raw', '/dev/mem') or die "/dev/mem: $!\n";
    scan($mem, 0, 1048576);
    $pages = 0;
    for my $range (ram()) {
        next if $range->[0] < 1048576;
        sysseek($mem, $range->[0], 0);
        sysread($mem, my $block, 4096) or print "refused $!\n";
    }
} elsif ($what eq 'beyond') {
    # Through mmap(2), which reaches what is no memory.
    open(my $mem, '+<:raw', '/dev/mem') or die "/dev/mem: $!\n";
    my @ram = ram();
    my $end = $ram[-1][1];
    my @places = (0xf0000, map { $end + $_ * 4096 } 0 .. 255);
    push @places, map { $end + ($_ << 21) } 1 .. 1536;
    push @places, map { 1 << $_ } 32 .. 45;
    my ($mapped, $refused, $filled) = (0, 0, 0);
    for my $place (@places) {
        my $address = syscall(9, 0, 4096, 1, 1, fileno($mem), $place);
        if ($address == -1) { $refused++; next }
        $mapped++;
        my $page = unpack('P4096', pack('Q', $address));
        look($page);
        my $empty = $page =~ /^(?:\x00+|\xff+)$/;
        print "rom ", unpack('H32', $page), "\n" if $place == 0xf0000 && !$empty;
        $filled++ unless $empty || $place == 0xf0000;
        syscall(11, $address, 4096);
    }
    print "mapped $mapped\nrefused $refused\nfilled $filled\n";
} else {
    open(my $disk, '<:raw', $what) or die "$what: $!\n";
    scan($disk, 0, 1 << 50);
}
print "bytes ", $total + 0, "\n";
print "mark $_ $seen{$_}\n" for keys %seen;
