#include "mission.hpp"

#include <fstream>

bool Mission::load(const std::string &path) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line[0] != '#') questions_.push_back(line);
  }
  return !questions_.empty();
}

std::string_view Mission::next() { return questions_[next_++ % questions_.size()]; }
