# Completion of socks-tunnel for fish 3.4 or newer. The program has written it itself:
# _SOCKS_TUNNEL_COMPLETE=fish_source socks-tunnel

# The command lines that lead to a command, and the options that take a value there.
set -g __socks_tunnel_commands @commands@
set -g __socks_tunnel_valued @valued@
set -g __socks_tunnel_running @running@

# Whether the line leads to the command of the arguments. With -o, whether an option of it may be
# typed, too; with -p, whether the argument with that number, counted from 0, is the one that is
# typed. With -r, prints the words of another program's command line instead.
function __socks_tunnel_at
    argparse o/option 'p/position=' r/rest -- $argv
    set -l words (commandline -opc)[2..-1]
    set -l path
    set -l number 0
    set -l waiting no
    set -l ended no
    while set -q words[1]
        set -l word $words[1]
        if test $waiting = yes
            set waiting no
        else if test $ended = no -a "$word" = --
            set ended yes
        else if test $ended = no; and string match -q -- '-?*' "$word"
            contains -- "$path $word" $__socks_tunnel_valued; and set waiting yes
        else if contains -- (string trim "$path $word") $__socks_tunnel_commands
            set -a path $word
        else
            contains -- "$path" $__socks_tunnel_running; and break
            set number (math $number + 1)
        end
        set -e words[1]
    end
    if set -q _flag_rest
        string escape -- $words
        return 0
    end
    test "$path" = "$argv"; or return 1
    # Behind -- and in the command line of another program are no options of this one.
    set -q _flag_option; and test $ended = yes -o (count $words) -gt 0; and return 1
    set -q _flag_position; and test $number != $_flag_position; and return 1
    return 0
end

# Prints the names of instances that run or are configured.
function __socks_tunnel_instances
    for place in @configurations@/*.toml
        string replace -r '.*/(.*)\.toml$' '$1' -- $place
    end
    set -l temporary /tmp
    test -n "$TMPDIR"; and set temporary $TMPDIR
    set -l mine $temporary/socks-tunnel-(id -u)
    test -O $mine; or set mine /dev/null
    set -l xdg /dev/null
    test -n "$XDG_RUNTIME_DIR"; and set xdg $XDG_RUNTIME_DIR/socks-tunnel
    for place in @runtime@/*/@socket@ $xdg/*/@socket@ $mine/*/@socket@
        string replace -r '.*/(.*)/[^/]*$' '$1' -- $place
    end
end

# Prints the names that only the program knows, such as those of live flows.
function __socks_tunnel_asked
    set -l words (commandline -opc)
    env COMP_WORDS=(string join ' ' -- (string escape -- $words)) COMP_TYPED=(commandline -ct) \
        _SOCKS_TUNNEL_COMPLETE=fish_complete $words[1] 2>/dev/null
end

# Prints what fish offers for the command line of another program.
function __socks_tunnel_command
    set -l words (__socks_tunnel_at -r)
    complete -C (string join ' ' -- $words (commandline -ct))
end

complete -c socks-tunnel -f
@lines@
