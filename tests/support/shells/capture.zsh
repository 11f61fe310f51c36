# zsh -f capture.zsh SCRIPT LINE: prints what zsh offers at the end of LINE with a completion script, one
# match a line. A shell on a terminal of its own completes the line; its compadd, to which all completion
# functions come in the end, prints what it is given.
zmodload zsh/zpty
typeset -g script=$1 line=$2 text found=
setup=$(mktemp)
cat >$setup <<'END'
PROMPT=
autoload -Uz compinit && compinit -u -D
bindkey '^I' complete-word
zstyle ':completion:*' insert-tab false
begin() { print -rn -- "<BEGIN>"; }
finish() { print -rn -- "<END>"; exit; }
compprefuncs=(begin)
comppostfuncs=(finish)
compadd() {
  # Those that only ask which words match (-O, -A) or have no match (-D) offer nothing.
  if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then
    builtin compadd "$@"
    return
  fi
  local -a offered
  builtin compadd -A offered "$@"
  local result=$?
  (( $#offered )) && print -rl -- $offered
  return result
}
END
print -r -- "source ${(q)script}; print -r -- '<READY>'" >>$setup
zpty shell zsh -f -i
zpty -w shell "source $setup"
until [[ $text == *'<READY>'* ]]; do zpty -r shell part || exit 1; text+=$part; done
zpty -w -n shell "$line"$'\t'
text=
until [[ $text == *'<END>'* ]]; do zpty -r shell part || exit 1; text+=$part; done
rm -f $setup
text=${${text##*'<BEGIN>'}%%'<END>'*}
print -r -- ${text//$'\r'/}
