// What the vehicle wants to know: a list of questions, asked in turn.
#pragma once

#include <string>
#include <string_view>
#include <vector>

class Mission {
public:
  // One question a line; empty lines and lines that begin with # are left out. False if there is none.
  bool load(const std::string &path);
  // The next question, the first after the last.
  std::string_view next();

private:
  std::vector<std::string> questions_;
  std::size_t next_ = 0;
};
