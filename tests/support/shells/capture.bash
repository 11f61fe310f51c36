# bash --norc capture.bash SCRIPT: reads a number of lines, each with the words of a command line between
# tabs (the last one is being typed). For each it prints what the completion script offers, between tabs,
# or how readline or another script would go on.
. "$1" || exit
compopt() { COMPREPLY=("compopt $*"); }
_command_offset() { COMPREPLY=("command ${COMP_WORDS[*]:$1}"); }
while IFS= read -r line; do
  mapfile -d $'\t' -t COMP_WORDS < <(printf '%s\t' "$line")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  _socks_tunnel socks-tunnel "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
  (IFS=$'\t'; printf '%s\n' "${COMPREPLY[*]}")
done
